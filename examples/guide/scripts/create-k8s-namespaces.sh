#!/usr/bin/env bash
# Guide 3.2: a namespace for each ECS cluster, and in it the service account of its tasks with the role that may become it.
source "$(dirname "$0")/lib.sh"
need aws kubectl

role=$(aws_ iam get-role --role-name "$TASK_ROLE" --query Role.Arn)
for cluster in "${CLUSTERS[@]}"; do
  kubectl apply -f - <<YAML
apiVersion: v1
kind: Namespace
metadata:
  name: $cluster
  labels:
    istio.io/dataplane-mode: ambient
---
apiVersion: v1
kind: ServiceAccount
metadata:
  name: $SERVICE_ACCOUNT
  namespace: $cluster
  annotations:
    ecs.solo.io/role-arn: $role
YAML
done
