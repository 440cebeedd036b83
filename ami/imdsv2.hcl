  # IMDSv2 only, for the instance that is built on and for those that the image is launched as.
  imds_support = "v2.0"

  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
  }
