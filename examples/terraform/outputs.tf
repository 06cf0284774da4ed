output "container_definitions" {
  description = "Container definitions with the proxy, as JSON."
  value       = jsonencode(concat(local.applications, [local.proxy]))
}

output "tags" {
  description = "Tags of the task definition by which discovery and the broker know the identity of the tasks."
  value = {
    "ecs.solo.io/namespace"       = var.namespace
    "ecs.solo.io/service-account" = var.service_account
  }
}

output "proxy_configuration" {
  description = "For a proxy_configuration block of aws_ecs_task_definition with capture platform; null otherwise."
  value = var.capture != "platform" ? null : {
    type           = "APPMESH"
    container_name = "ztunnel"
    properties = {
      IgnoredUID       = "1337"
      AppPorts         = join(",", local.ports)
      ProxyIngressPort = "15006"
      ProxyEgressPort  = "15001"
      EgressIgnoredIPs = "169.254.170.2,169.254.169.254"
    }
  }
}
