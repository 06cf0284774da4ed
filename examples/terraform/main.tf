# Adds the mesh's proxy to the container definitions of an ECS task: the same that `isthmus ecs render` does. Give
# `container_definitions` to aws_ecs_task_definition (network_mode must be awsvpc, with a task role), and merge `tags` into
# its tags.

locals {
  gateway = "https://${var.gateway_address}:15012"

  proxy = merge(
    jsondecode(templatefile("${path.module}/ztunnel.json.tftpl", {
      image              = var.image
      memory_reservation = var.memory_reservation
      network            = var.network
      cluster_id         = var.cluster_id
      trust_domain       = var.trust_domain
      gateway            = local.gateway
      root_cert          = var.root_cert
      socks              = tostring(var.capture != "none")
      redirect           = tostring(var.capture == "redirect")
      user               = var.capture == "redirect" ? "0:0" : "1337:1337"
      capabilities       = merge({ drop = ["ALL"] }, var.capture == "redirect" ? { add = ["NET_ADMIN"] } : {})
      stop_timeout       = var.stop_timeout
      stop_timeout_text  = tostring(var.stop_timeout)
    })),
    var.log_configuration == null ? {} : { logConfiguration = var.log_configuration },
  )

  # The application starts after the proxy and stops before it.
  applications = [
    for c in jsondecode(var.container_definitions) : can(c.firelensConfiguration) ? c : merge(c, {
      dependsOn = concat(try(c.dependsOn, []), [{ containerName = "ztunnel", condition = "HEALTHY" }])
    })
  ]

  ports = flatten([for c in jsondecode(var.container_definitions) : [for p in try(c.portMappings, []) : tostring(p.containerPort) if can(p.containerPort)]])
}
