# SPDX-License-Identifier: Apache-2.0
# For Packer from 1.7 on, which fetches its plugins; 1.6.6 has them built in and refuses this block.

packer {
  required_version = ">= 1.9.0"

  required_plugins {
    amazon = {
      source  = "github.com/hashicorp/amazon"
      version = "= 1.3.3"
    }
  }
}
