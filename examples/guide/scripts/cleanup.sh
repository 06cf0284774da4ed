#!/usr/bin/env bash
# The guide's clean-up: everything that the other scripts made, in the order in which nothing is left hanging. It can be
# repeated. The EKS cluster stays: eksctl delete cluster -n "$CLUSTER_NAME".
#   cleanup.sh [-y]   -y does not ask
source "$(dirname "$0")/lib.sh"
need aws kubectl jq

if [ "${1:-}" != -y ]; then
  read -r -p "delete the ECS clusters ${CLUSTERS[*]} and the roles of the guide in account $LOCAL_ACCOUNT? [y/N] " answer
  [ "$answer" = y ] || exit 1
fi

say "policies, test pods and gateway"
"$GUIDE_DIR/scripts/test/test-authz-policies.sh" --cleanup || true
kubectl delete --ignore-not-found deployment/eks-shell deployment/eks-echo service/eks-echo serviceaccount/eks-shell serviceaccount/eks-echo -n default

for cluster in "${CLUSTERS[@]}"; do
  [ "$(cluster_status "$cluster")" = ACTIVE ] || continue
  for service in "${SERVICES[@]}"; do
    [ "$(service_status "$cluster" "$service")" = ACTIVE ] || continue
    say "service $cluster/$service"
    aws_ ecs update-service --cluster "$cluster" --service "$service" --desired-count 0 >/dev/null
    aws_ ecs delete-service --cluster "$cluster" --service "$service" --force >/dev/null
  done
done
for cluster in "${CLUSTERS[@]}"; do
  [ "$(cluster_status "$cluster")" = ACTIVE ] || continue
  for service in "${SERVICES[@]}"; do
    deadline=$((SECONDS + 180))
    until [ "$(service_status "$cluster" "$service")" != DRAINING ] || [ "$SECONDS" -ge "$deadline" ]; do sleep 1; done
  done
  say "cluster $cluster"
  deadline=$((SECONDS + 180))
  until aws_ ecs delete-cluster --cluster "$cluster" >/dev/null; do
    [ "$SECONDS" -lt "$deadline" ] || die "cluster $cluster cannot be deleted"
    sleep 1
  done
done
kubectl delete namespace --ignore-not-found "${CLUSTERS[@]}"

for family in "${FAMILIES[@]}"; do
  for arn in $(aws_ ecs list-task-definitions --family-prefix "$family" --status ACTIVE --query 'taskDefinitionArns[]'); do
    [ "$arn" = None ] && continue
    say "task definition ${arn##*/}"
    aws_ ecs deregister-task-definition --task-definition "$arn" >/dev/null
  done
done

aws_ logs delete-log-group --log-group-name "$LOG_GROUP" 2>/dev/null || true
say "roles"
# detach ROLE takes the managed policies off a role: earlier versions of the guide attach some, and IAM deletes no role that
# has one.
detach() {
  local arn
  for arn in $(aws_ iam list-attached-role-policies --role-name "$1" --query 'AttachedPolicies[].PolicyArn'); do
    [ "$arn" = None ] || aws_ iam detach-role-policy --role-name "$1" --policy-arn "$arn"
  done
}
if aws_ iam get-role --role-name "$TASK_ROLE" >/dev/null 2>&1; then
  aws_ iam delete-role-policy --role-name "$TASK_ROLE" --policy-name Task 2>/dev/null || true
  detach "$TASK_ROLE"
  aws_ iam delete-role --role-name "$TASK_ROLE"
fi
if aws_ iam get-role --role-name "$DISCOVERY_ROLE" >/dev/null 2>&1; then
  aws_ iam delete-role-policy --role-name "$DISCOVERY_ROLE" --policy-name Discovery 2>/dev/null || true
  detach "$DISCOVERY_ROLE"
  aws_ iam delete-role --role-name "$DISCOVERY_ROLE"
fi
aws_ iam delete-role-policy --role-name "$CONTROLLER_ROLE" --policy-name AssumeIstiodLocal 2>/dev/null || true

vpc=$(vpc_id)
group=$(security_group_id "$vpc" "$SECURITY_GROUP")
if [ -n "$group" ]; then
  say "security group $SECURITY_GROUP"
  deadline=$((SECONDS + 300))
  until aws_ ec2 delete-security-group --group-id "$group"; do
    [ "$SECONDS" -lt "$deadline" ] || die "security group $SECURITY_GROUP is still in use"
    sleep 5
  done
fi
say "done"
