#!/usr/bin/env bash
# Guide 1.3, second half: the role of the ECS tasks. It is also their execution role.
source "$(dirname "$0")/lib.sh"
need aws jq

trust=$(jq -n --arg account "$LOCAL_ACCOUNT" --arg source "arn:aws:ecs:$AWS_REGION:$LOCAL_ACCOUNT:*" '{Version: "2012-10-17", Statement: [
  {Effect: "Allow", Principal: {Service: "ecs-tasks.amazonaws.com"}, Action: ["sts:AssumeRole"],
   Condition: {StringEquals: {"aws:SourceAccount": $account}, ArnLike: {"aws:SourceArn": $source}}}]}')
rights=$(jq -n --arg logs "arn:aws:logs:$AWS_REGION:$LOCAL_ACCOUNT:log-group:/ecs/*" '{Version: "2012-10-17", Statement: [
  {Sid: "Exec", Effect: "Allow", Resource: ["*"], Action: ["ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel",
    "ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"]},
  {Sid: "Logs", Effect: "Allow", Resource: [$logs], Action: ["logs:CreateLogGroup", "logs:CreateLogStream", "logs:PutLogEvents"]},
  {Sid: "Images", Effect: "Allow", Resource: ["*"], Action: ["ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability",
    "ecr:GetDownloadUrlForLayer", "ecr:BatchGetImage"]}]}')

if aws_ iam get-role --role-name "$TASK_ROLE" >/dev/null 2>&1; then
  say "role $TASK_ROLE exists: its trust policy is set"
  aws_ iam update-assume-role-policy --role-name "$TASK_ROLE" --policy-document "$trust"
else
  say "role $TASK_ROLE"
  aws_ iam create-role --role-name "$TASK_ROLE" --path "$ROLE_PATH" --assume-role-policy-document "$trust" --tags "Key=$MARK,Value=guide" >/dev/null
  aws_ iam wait role-exists --role-name "$TASK_ROLE"
fi

aws_ iam put-role-policy --role-name "$TASK_ROLE" --policy-name Task --policy-document "$rights"
say "$TASK_ROLE is ready"
