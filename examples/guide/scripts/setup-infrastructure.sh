#!/usr/bin/env bash
# Guide 1.3, first half: the EKS cluster is there, and the controller's role (made by eksctl with the cluster) may assume
# the role with which ECS is read.
source "$(dirname "$0")/lib.sh"
need aws jq

say "EKS cluster $CLUSTER_NAME"
aws_ eks wait cluster-active --name "$CLUSTER_NAME"
vpc=$(vpc_id)
say "VPC $vpc"

controller=$(aws_ iam get-role --role-name "$CONTROLLER_ROLE" --query Role.Arn) ||
  die "there is no role $CONTROLLER_ROLE: make the cluster with: isthmus eks manifest | eksctl create cluster -f -"

trust=$(jq -n --arg arn "$controller" '{Version: "2012-10-17", Statement: [
  {Effect: "Allow", Principal: {AWS: $arn}, Action: ["sts:AssumeRole", "sts:TagSession"]}]}')
prefix="ecs-$CLUSTER_NAME-*"
rights=$(jq -n --arg arn "arn:aws:ecs:$AWS_REGION:$LOCAL_ACCOUNT" --arg prefix "$prefix" '{Version: "2012-10-17", Statement: [
  {Sid: "Enumerate", Effect: "Allow", Action: ["ecs:ListClusters", "ecs:DescribeTaskDefinition"], Resource: ["*"]},
  {Sid: "Clusters", Effect: "Allow", Action: ["ecs:DescribeClusters"], Resource: ["\($arn):cluster/\($prefix)"]},
  {Sid: "ListInCluster", Effect: "Allow", Action: ["ecs:ListServices", "ecs:ListTasks"], Resource: ["*"],
   Condition: {ArnLike: {"ecs:cluster": "\($arn):cluster/\($prefix)"}}},
  {Sid: "DescribeInCluster", Effect: "Allow", Action: ["ecs:DescribeServices", "ecs:DescribeTasks"],
   Resource: ["\($arn):service/\($prefix)/*", "\($arn):task/\($prefix)/*"]}]}')

if aws_ iam get-role --role-name "$DISCOVERY_ROLE" >/dev/null 2>&1; then
  say "role $DISCOVERY_ROLE exists: its trust policy is set"
  aws_ iam update-assume-role-policy --role-name "$DISCOVERY_ROLE" --policy-document "$trust"
else
  say "role $DISCOVERY_ROLE"
  aws_ iam create-role --role-name "$DISCOVERY_ROLE" --assume-role-policy-document "$trust" --tags "Key=$MARK,Value=guide" >/dev/null
  aws_ iam wait role-exists --role-name "$DISCOVERY_ROLE"
fi
aws_ iam put-role-policy --role-name "$DISCOVERY_ROLE" --policy-name Discovery --policy-document "$rights"

discovery=$(aws_ iam get-role --role-name "$DISCOVERY_ROLE" --query Role.Arn)
assume=$(jq -n --arg arn "$discovery" '{Version: "2012-10-17", Statement: [
  {Sid: "Assume", Effect: "Allow", Action: ["sts:AssumeRole", "sts:TagSession"], Resource: [$arn]}]}')
say "$CONTROLLER_ROLE may assume $DISCOVERY_ROLE"
aws_ iam put-role-policy --role-name "$CONTROLLER_ROLE" --policy-name AssumeIstiodLocal --policy-document "$assume"
