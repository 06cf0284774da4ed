#!/usr/bin/env bash
# Guide 3.3: every service gets its proxy. Needs an istioctl with the ecs commands: a link of that name to isthmus is one.
source "$(dirname "$0")/lib.sh"
need aws istioctl

case "$(istioctl version --short 2>/dev/null | awk '{ print $NF }')" in
  *-solo) ;;
  *) die "this istioctl has no ecs commands: ln -s \"\$(command -v isthmus)\" istioctl, and put it first in PATH" ;;
esac
for cluster in "${CLUSTERS[@]}"; do
  for service in "${SERVICES[@]}"; do
    say "$cluster/$service"
    istioctl ecs add-service "$service" --cluster "$cluster" --namespace "$cluster" --service-account "$SERVICE_ACCOUNT" --external \
      ${LOCAL_ACCOUNT_PROFILE:+--profile "$LOCAL_ACCOUNT_PROFILE"}
  done
done
for cluster in "${CLUSTERS[@]}"; do
  aws_ ecs wait services-stable --cluster "$cluster" --services "${SERVICES[@]}"
done
