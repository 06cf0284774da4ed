#!/usr/bin/env bash
# Guide 3.1: two ECS clusters, each with shell-task and echo-service. What exists is left as it is.
source "$(dirname "$0")/lib.sh"
need aws jq

vpc=$(vpc_id)
range=$(aws_ ec2 describe-vpcs --vpc-ids "$vpc" --query 'Vpcs[0].CidrBlock')
subnets=$(aws_ ec2 describe-subnets --filters "Name=vpc-id,Values=$vpc" 'Name=tag:Name,Values=*Public*' --query 'Subnets[].SubnetId' | tr '[:space:]' ',' | sed 's/,*$//')
[ -n "$subnets" ] || die "VPC $vpc has no subnet with Public in its name"
role=$(aws_ iam get-role --role-name "$TASK_ROLE" --query Role.Arn)

group=$(security_group_id "$vpc" "$SECURITY_GROUP")
if [ -z "$group" ]; then
  say "security group $SECURITY_GROUP: port 15008 from $range"
  group=$(aws_ ec2 create-security-group --group-name "$SECURITY_GROUP" --description "ECS tasks of the mesh" --vpc-id "$vpc" --query GroupId)
  aws_ ec2 authorize-security-group-ingress --group-id "$group" --protocol tcp --port 15008 --cidr "$range" >/dev/null
fi
aws_ logs create-log-group --log-group-name "$LOG_GROUP" 2>/dev/null && say "log group $LOG_GROUP" || true

# register FAMILY CONTAINER IMAGE PORT STREAM ENVIRONMENT COMMAND registers a task definition unless the family exists.
register() {
  if aws_ ecs describe-task-definition --task-definition "$1" >/dev/null 2>&1; then
    say "task definition $1 exists"
    return
  fi
  say "task definition $1"
  local input
  input=$(jq -n --arg family "$1" --arg name "$2" --arg image "$3" --argjson port "$4" --arg stream "$5" --argjson env "$6" --argjson command "$7" \
    --arg role "$role" --arg group "$LOG_GROUP" --arg region "$AWS_REGION" --arg mark "$MARK" --arg sa "$SERVICE_ACCOUNT" '{
      family: $family, networkMode: "awsvpc", requiresCompatibilities: ["FARGATE"], cpu: "256", memory: "512", taskRoleArn: $role, executionRoleArn: $role,
      containerDefinitions: [({name: $name, image: $image, essential: true, environment: $env,
        portMappings: [{containerPort: $port, hostPort: $port, protocol: "tcp", name: "http", appProtocol: "http"}],
        logConfiguration: {logDriver: "awslogs", options: {"awslogs-group": $group, "awslogs-region": $region, "awslogs-stream-prefix": $stream}}}
        + if $command == null then {} else {command: $command} end)],
      tags: [{key: "environment", value: "ecs-demo"}, {key: "ecs.solo.io/service-account", value: $sa}, {key: $mark, value: "guide"}]}')
  aws_ ecs register-task-definition --cli-input-json "$input" >/dev/null
}
register shell-task-definition shell curlimages/curl 80 shell-task '[{"name": "ALL_PROXY", "value": "socks5h://127.0.0.1:15080"}]' '["sleep", "3600"]'
register echo-service-definition echo-service ealen/echo-server 8080 echo-service '[{"name": "PORT", "value": "8080"}]' null

for cluster in "${CLUSTERS[@]}"; do
  if [ "$(cluster_status "$cluster")" != ACTIVE ]; then
    say "cluster $cluster"
    aws_ ecs create-cluster --cluster-name "$cluster" --tags key=ecs.solo.io/discovery-enabled,value=true "key=$MARK,value=guide" >/dev/null
  fi
  for i in "${!SERVICES[@]}"; do
    service=${SERVICES[$i]}
    if [ "$(service_status "$cluster" "$service")" = ACTIVE ]; then
      say "service $cluster/$service exists"
      continue
    fi
    say "service $cluster/$service"
    aws_ ecs create-service --cluster "$cluster" --service-name "$service" --task-definition "${FAMILIES[$i]}" --desired-count 1 --launch-type FARGATE \
      --enable-execute-command --network-configuration "awsvpcConfiguration={subnets=[$subnets],securityGroups=[$group],assignPublicIp=ENABLED}" >/dev/null
  done
done
for cluster in "${CLUSTERS[@]}"; do
  aws_ ecs wait services-stable --cluster "$cluster" --services "${SERVICES[@]}"
done
say "all services run"
