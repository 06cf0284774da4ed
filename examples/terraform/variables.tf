variable "container_definitions" {
  description = "The application's container definitions, as JSON."
  type        = string
}

variable "gateway_address" {
  description = "Address of the east-west gateway: kubectl get gateway -n istio-system eastwest -o jsonpath='{.status.addresses[0].value}'"
  type        = string
}

variable "root_cert" {
  description = "The mesh's root certificates: kubectl get configmap -n istio-system istio-ca-root-cert -o jsonpath='{.data.root-cert\\.pem}'"
  type        = string
}

variable "namespace" {
  description = "Kubernetes namespace of the tasks' identity; usually the name of the ECS cluster."
  type        = string
}

variable "service_account" {
  description = "Kubernetes service account of the tasks' identity."
  type        = string
}

variable "image" {
  description = "Image of ztunnel."
  type        = string
}

variable "network" {
  description = "Mesh network of istiod."
  type        = string
  default     = "eks"
}

variable "cluster_id" {
  description = "Cluster id of istiod."
  type        = string
  default     = "Kubernetes"
}

variable "trust_domain" {
  description = "Trust domain of the mesh."
  type        = string
  default     = "cluster.local"
}

variable "capture" {
  description = "How the application's connections reach the proxy: socks; redirect (EC2 and Managed Instances only); platform, which needs the output proxy_configuration too; or none for inbound only."
  type        = string
  default     = "socks"
  validation {
    condition     = contains(["socks", "redirect", "platform", "none"], var.capture)
    error_message = "capture is socks, redirect, platform or none."
  }
}

variable "memory_reservation" {
  description = "MiB that the proxy reserves."
  type        = number
  default     = 64
}

variable "stop_timeout" {
  description = "Seconds for which the proxy may drain; Fargate allows 120."
  type        = number
  default     = 60
}

variable "log_configuration" {
  description = "logConfiguration of the proxy's container; null means none."
  type        = any
  default     = null
}
