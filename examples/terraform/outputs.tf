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
