package cli

import (
	"context"
	"slices"
	"strings"

	awsadmin "github.com/isthmus-mesh/isthmus/internal/awsapi/admin"
	"github.com/isthmus-mesh/isthmus/internal/config"
	"github.com/isthmus-mesh/isthmus/internal/mesh"
)

// kept returns a function that reports whether a policy stays though nobody here made it: it is in the configuration's
// keep, by ARN or by name, or it lets the controller's role into an external account.
func kept(cfg config.Config) func(policy string) bool {
	return func(policy string) bool {
		name := policy[strings.LastIndex(policy, "/")+1:]
		return strings.HasPrefix(policy, assumeExternal("")) || slices.Contains(cfg.Keep, policy) || slices.Contains(cfg.Keep, name)
	}
}

// otherIngress is what the tasks' security group of a VPC admits beside the mesh, and the configuration does not keep.
func otherIngress(ctx context.Context, admin *awsadmin.Client, cfg config.Config, vpc string) ([]awsadmin.Ingress, error) {
	found, err := admin.OtherIngress(ctx, vpc, securityGroup(cfg), mesh.HBONEPort)
	return slices.DeleteFunc(found, func(in awsadmin.Ingress) bool { return slices.Contains(cfg.Keep, in.Words) }), awsError(err)
}

// closeChange is the change that closes something of the tasks' security group.
func closeChange(cfg config.Config, words string) string {
	return "close security group " + securityGroup(cfg) + " to " + words
}

// closeGroup makes the tasks' security group admit the mesh only.
func closeGroup(ctx context.Context, admin *awsadmin.Client, cfg config.Config, vpc string, dryRun bool) (changes []string, err error) {
	others, err := otherIngress(ctx, admin, cfg, vpc)
	if err != nil {
		return nil, err
	}
	for _, in := range others {
		changes = append(changes, closeChange(cfg, in.Words))
		if dryRun {
			continue
		}
		if err := admin.CloseIngress(ctx, in); err != nil {
			return changes, awsError(err)
		}
	}
	return changes, nil
}

// foreignRights says which roles that isthmus did not make have rights that the mesh does not need. Whoever made them may
// need those, so that they are told and never taken.
func foreignRights(ctx context.Context, admin *awsadmin.Client, roles []awsadmin.Role) (notes []string, err error) {
	for _, r := range roles {
		found, ours, err := admin.FindRole(ctx, r.Name, r.Owner)
		if err != nil {
			return notes, awsError(err)
		}
		if !found || ours {
			continue
		}
		extra, err := admin.ExtraPolicies(ctx, r)
		if err != nil {
			return notes, awsError(err)
		}
		for _, p := range extra.All() {
			notes = append(notes, "role "+r.Name+", which isthmus did not make, has the policy "+p)
		}
	}
	return notes, nil
}
