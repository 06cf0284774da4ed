#!/usr/bin/env bash
# Guide part 5: call a host from the shell-task of an ECS cluster. ORIGIN_CLUSTER names the cluster, the argument the host.
# The call runs through ECS Exec: with the AWS CLI where AWS's session-manager-plugin is installed, else with isthmus.
source "$(dirname "$0")/../lib.sh"
need aws jq
origin=${ORIGIN_CLUSTER:-${CLUSTERS[0]}}
target=${1:?usage: ORIGIN_CLUSTER=CLUSTER call-from-ecs.sh HOST[:PORT][/PATH]}

if command -v session-manager-plugin >/dev/null; then
  task=$(aws_ ecs list-tasks --cluster "$origin" --service-name shell-task --desired-status RUNNING --query 'taskArns[0]')
  [ "$task" != None ] || die "shell-task of $origin has no running task"
  # The plugin needs a standard input that does not end before the command does, and is not the caller's.
  exec {open_input}< <(exec sleep 300 2>/dev/null)
  holder=$!
  output=$(aws_ ecs execute-command --cluster "$origin" --task "$task" --container shell --interactive \
    --command "sh -c 'curl -sS --max-time 10 $target'" <&"$open_input" 2>&1) || true
  kill "$holder" 2>/dev/null || true
else
  output=$(isthmus ecs exec "$origin/shell-task" -- curl -sS --max-time 10 "$target" 2>&1) || true
fi
output=$(tr -d '\r' <<<"$output" | grep -v -e '^$' -e 'Starting session with' -e 'Exiting session with' -e 'The Session Manager plugin was installed successfully' || true)
# The answer of the echo server is JSON; anything else, such as curl's complaint, is printed as it is.
jq '{hostname: .host.hostname, ip: .host.ip}' <<<"$output" 2>/dev/null || { echo "$output"; exit 1; }
