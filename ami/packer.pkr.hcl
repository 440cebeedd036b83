# SPDX-License-Identifier: Apache-2.0
# The forensics AMI: Debian 12 with the Sleuth Kit, libewf, nbd-client and impound, hardened for
# attached evidence. `make ami` builds it; `packer validate ami/packer.pkr.hcl` checks it without AWS.
#
# plugins.pkr.hcl and imdsv2.hcl hold what Packer 1.6.6 does not know.

variable "region" {
  type    = string
  default = "eu-central-1"
}

variable "kms_key" {
  type        = string
  description = "ARN or alias of the KMS key of the image; shared with nobody else."
  default     = "alias/impound-ami"
}

variable "vpc_id" {
  type    = string
  default = ""
}

variable "subnet_id" {
  type    = string
  default = ""
}

variable "instance_profile" {
  type        = string
  description = "Of the instance that is built on; what Session Manager needs and nothing else."
  default     = "impound-ami-builder"
}

variable "instance_type" {
  type    = string
  default = "m6i.large"
}

variable "input" {
  type        = string
  description = "Folder that `make ami-input` made: wheels, Debian lock, SHA256SUMS."
  default     = "ami/input"
}

source "amazon-ebs" "workstation" {
  region               = var.region
  vpc_id               = var.vpc_id
  subnet_id            = var.subnet_id
  instance_type        = var.instance_type
  iam_instance_profile = var.instance_profile
  ami_name             = "impound-workstation-{{ isotime `20060102-150405` }}"
  ami_description      = "impound forensics workstation"
  encrypt_boot         = true
  kms_key_id           = var.kms_key
  ssh_username         = "admin"
  ssh_interface        = "session_manager"
  ebs_optimized        = true
  # imdsv2.hcl is put here.

  source_ami_filter {
    filters = {
      name                = "debian-12-amd64-*"
      architecture        = "x86_64"
      root-device-type    = "ebs"
      virtualization-type = "hvm"
    }
    owners      = ["136693071363"] # Debian
    most_recent = true
  }

  launch_block_device_mappings {
    device_name           = "/dev/xvda"
    volume_type           = "gp3"
    volume_size           = 16
    iops                  = 3000
    throughput            = 125
    encrypted             = true
    kms_key_id            = var.kms_key
    delete_on_termination = true
  }

  tags = {
    Name        = "impound-workstation"
    impound     = "workstation"
    source_ami  = "{{ .SourceAMI }}"
    source_name = "{{ .SourceAMIName }}"
  }
}

build {
  sources = ["source.amazon-ebs.workstation"]

  provisioner "shell" {
    inline = ["mkdir -p /tmp/impound-ami"]
  }

  provisioner "file" {
    source      = "${var.input}/"
    destination = "/tmp/impound-ami"
  }

  # The SSH server goes last: this connection outlives it.
  provisioner "shell" {
    execute_command = "sudo sh -eu {{ .Path }}"
    inline = [
      "sh -eu /tmp/impound-ami/provision.sh /tmp/impound-ami",
      "impound self-check",
      "rm -rf /tmp/impound-ami /root/.ssh /home/*/.ssh /var/lib/cloud/instances",
    ]
  }

  post-processor "manifest" {
    output     = "ami/input/ami.json"
    strip_path = true
  }
}
