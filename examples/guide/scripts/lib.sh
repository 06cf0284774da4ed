# What the guide's scripts share. Source it; it changes no state.
set -euo pipefail

GUIDE_DIR="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
# shellcheck source=../env-config.sh
source "$GUIDE_DIR/env-config.sh"

TASK_ROLE=eks-ecs-task-role
ROLE_PATH=/ecs/ambient/
DISCOVERY_ROLE=istiod-local
CONTROLLER_ROLE="istiod-eks-ecs-$CLUSTER_NAME"
SERVICE_ACCOUNT=ecs-demo-sa-local
SECURITY_GROUP="ecs-$CLUSTER_NAME-sg"
LOG_GROUP=/ecs/ecs-demo
DOMAIN=ecs.local
CLUSTERS=("ecs-$CLUSTER_NAME-1" "ecs-$CLUSTER_NAME-2")
SERVICES=(shell-task echo-service)
FAMILIES=(shell-task-definition echo-service-definition)
MARK=isthmus.dev/managed-by

export AWS_PAGER="" AWS_DEFAULT_OUTPUT=text

say() { echo "== $*" >&2; }
die() { echo "error: $*" >&2; exit 1; }

# aws_ runs the AWS CLI for the guide's account.
aws_() { aws ${LOCAL_ACCOUNT_PROFILE:+--profile "$LOCAL_ACCOUNT_PROFILE"} --region "$AWS_REGION" "$@"; }

need() {
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null || die "$tool is not in PATH"
  done
}

vpc_id() {
  aws_ eks describe-cluster --name "$CLUSTER_NAME" --query cluster.resourcesVpcConfig.vpcId ||
    die "there is no EKS cluster $CLUSTER_NAME in $AWS_REGION"
}

# security_group_id prints the id of a security group, or nothing.
security_group_id() {
  local id
  id=$(aws_ ec2 describe-security-groups --filters "Name=vpc-id,Values=$1" "Name=group-name,Values=$2" --query 'SecurityGroups[0].GroupId')
  [ "$id" = None ] || echo "$id"
}

# cluster_status prints ACTIVE, INACTIVE, ..., or nothing.
cluster_status() {
  local status
  status=$(aws_ ecs describe-clusters --clusters "$1" --query 'clusters[0].status')
  [ "$status" = None ] || echo "$status"
}

service_status() {
  local status
  status=$(aws_ ecs describe-services --cluster "$1" --services "$2" --query 'services[0].status' 2>/dev/null) || true
  [ "$status" = None ] || echo "$status"
}
