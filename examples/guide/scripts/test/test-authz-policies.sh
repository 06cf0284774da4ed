#!/usr/bin/env bash
# Guide part 6: the six authorization exercises. Applies the policies of an exercise, tests the five paths, and compares
# with what the guide expects; exit code 3 if an outcome differs.
#   test-authz-policies.sh            choose at a prompt
#   test-authz-policies.sh -e N|all   exercise 1 to 6, or all
#   test-authz-policies.sh --cleanup  remove the policies
source "$(dirname "$0")/../lib.sh"
need kubectl jq
one=${CLUSTERS[0]} two=${CLUSTERS[1]}
port=8080
# How long a path may differ from what is expected, because a policy is still on its way.
patience=${PATIENCE:-20}
differing=0

policy() { # NAME, specification on standard input
  { printf 'apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: %s\n  namespace: %s\nspec:\n' "$1" "$one"; sed 's/^/  /'; } | kubectl apply -f - >&2
}
allow() { # NAME NAMESPACE
  policy "$1" <<YAML
action: ALLOW
rules:
- from:
  - source:
      namespaces: ["$2"]
  to:
  - operation:
      ports: ["$port"]
YAML
}
deny_all() { echo '{}' | policy deny-all; }
deny_two() {
  policy deny-cluster-2 <<YAML
action: DENY
rules:
- from:
  - source:
      namespaces: ["$two"]
YAML
}
clean() { kubectl delete authorizationpolicy -n "$one" --ignore-not-found deny-all allow-eks-to-echo allow-cluster-2-to-echo allow-internal deny-cluster-2 >&2; }

host() { echo "echo-service.$1.$DOMAIN:$port"; }
from_eks() { kubectl exec deploy/eks-shell -n default -- curl -sS --max-time 10 "$(host "$1")" 2>&1; }
from_ecs() { ORIGIN_CLUSTER=$1 "$GUIDE_DIR/scripts/test/call-from-ecs.sh" "$(host "$2")" 2>&1; }

# path TITLE WANT COMMAND... tests one path; WANT is open or closed.
path() {
  local title=$1 want=$2 got output deadline=$((SECONDS + patience))
  shift 2
  echo "[TEST] $title"
  while :; do
    output=$("$@") || true
    if grep -q hostname <<<"$output"; then got=open; else got=closed; fi
    if [ "$got" = "$want" ] || [ "$SECONDS" -ge "$deadline" ]; then break; fi
    sleep 0.5
  done
  if [ "$got" = open ]; then
    echo "[PASS] Connected successfully"
  else
    echo "[FAIL] Connection failed: $(grep -m1 curl: <<<"$output" || head -c 100 <<<"$output")"
  fi
  if [ "$got" != "$want" ]; then
    echo "  this differs: the guide expects this path to be $want"
    differing=$((differing + 1))
  fi
}

# paths WANT1 ... WANT5 tests the guide's five paths.
paths() {
  path "EKS -> Cluster 1 echo-service" "$1" from_eks "$one"
  path "EKS -> Cluster 2 echo-service" "$2" from_eks "$two"
  path "Cluster 1 -> Cluster 2 echo-service" "$3" from_ecs "$one" "$two"
  path "Cluster 2 -> Cluster 1 echo-service" "$4" from_ecs "$two" "$one"
  path "Cluster 1 internal (shell -> echo)" "$5" from_ecs "$one" "$one"
}

exercise() {
  echo
  echo "=== Exercise 6.$1 ==="
  clean
  case $1 in
    1) paths open open open open open ;;
    2) deny_all; paths closed open open closed closed ;;
    3) deny_all; allow allow-eks-to-echo default; paths open open open closed closed ;;
    4) deny_all; allow allow-eks-to-echo default; allow allow-cluster-2-to-echo "$two"; paths open open open open closed ;;
    5) deny_all; allow allow-eks-to-echo default; allow allow-cluster-2-to-echo "$two"; allow allow-internal "$one"; paths open open open open open ;;
    6) deny_all; allow allow-eks-to-echo default; deny_two; paths open open open closed closed ;;
    *) die "exercise $1: want 1 to 6, or all" ;;
  esac
}

case ${1:-} in
  --cleanup) clean ;;
  -e)
    if [ "${2:?usage: -e N|all}" = all ]; then
      for n in 1 2 3 4 5 6; do exercise "$n"; done
    else
      exercise "$2"
    fi
    ;;
  "")
    while read -r -p "exercise 1 to 6, all, c to clean up, q to quit: " choice; do
      case $choice in
        q) break ;;
        c) clean ;;
        all) for n in 1 2 3 4 5 6; do exercise "$n"; done ;;
        [1-6]) exercise "$choice" ;;
      esac
    done
    ;;
  *) die "usage: test-authz-policies.sh [-e N|all] [--cleanup]" ;;
esac
[ "$differing" -eq 0 ] || { echo "$differing outcomes differ from the guide" >&2; exit 3; }
