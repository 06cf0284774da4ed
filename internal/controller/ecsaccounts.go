package controller

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"reflect"
	"slices"

	"github.com/isthmus-mesh/isthmus/internal/controller/settings"
	"github.com/isthmus-mesh/isthmus/internal/diag"
	"github.com/isthmus-mesh/isthmus/internal/kube"
)

// ECSAccount resources say the same as platforms.ecs.accounts of the file, and more can be added while the controller
// runs. The accounts of the file are shown as ECSAccounts too, named config-ID and labelled originLabel=originFile; those
// are written by the leader and never read back, so that one look at `kubectl get ecsaccounts` shows every account.
//
// An account may be declared once. Of several that declare it, the file wins, then the oldest resource.
const (
	ecsAccountVersion = "isthmus.dev/v1alpha1"
	ecsAccountKind    = "ECSAccount"
	originLabel       = "isthmus.dev/origin"
	originFile        = "config-file"
)

// declared is one account that somebody declared, in the file or in an ECSAccount.
type declared struct {
	name    string // of the ECSAccount that shows it
	account settings.Account
	object  *kube.Object // nil for one of the file
	reason  string       // why it is not accepted, in camel case; "" means that it is
	err     error
}

// declarations joins the accounts of the file with the resources.
func declarations(file []settings.Account, objects []*kube.Object) []declared {
	out := make([]declared, 0, len(file)+len(objects))
	owner := map[string]string{}
	for _, a := range file {
		out = append(out, declared{name: "config-" + a.AccountID(), account: a})
		owner[a.AccountID()] = "the controller's configuration file"
	}
	objects = slices.Clone(objects)
	slices.SortFunc(objects, func(a, b *kube.Object) int {
		x, y := a.GetCreationTimestamp(), b.GetCreationTimestamp()
		return cmp.Or(x.Compare(y.Time), cmp.Compare(a.GetName(), b.GetName()))
	})
	for _, o := range objects {
		if o.GetLabels()[originLabel] == originFile || o.GetDeletionTimestamp() != nil {
			continue
		}
		d := declared{name: o.GetName(), object: o}
		var read struct {
			Spec settings.Account `json:"spec"`
		}
		err := kube.Decode(o, &read)
		if err == nil {
			err = read.Spec.Check()
		}
		d.account = read.Spec
		id := d.account.AccountID()
		switch {
		case err != nil:
			d.reason, d.err = "Invalid", err
		case owner[id] != "":
			d.reason, d.err = "Conflict", configError("account %s is declared by %s already", id, owner[id])
		case len(owner) >= settings.MaxAccounts:
			d.reason, d.err = "TooMany", configError("there are %d accounts already, which is the most that are supported", len(owner))
		default:
			owner[id] = ecsAccountKind + " " + d.name
		}
		out = append(out, d)
	}
	return out
}

// declare makes the accounts those of the file and of the resources.
func (c *Controller) declare(objects []*kube.Object) {
	all := declarations(c.cfg.Settings.Platforms.ECS.Accounts, objects)
	var accepted []settings.Account
	for _, d := range all {
		if d.reason == "" {
			accepted = append(accepted, d.account)
		}
	}
	old := c.declared.Load()
	if old == nil || !sameAccounts(accepted, *old) {
		errs := c.accounts.set(accepted)
		for i := range all {
			if err := errs[all[i].account.AccountID()]; err != nil && all[i].reason == "" {
				all[i].reason, all[i].err = "Invalid", err
			}
		}
		if old != nil {
			c.log.Info("accounts changed", slog.Int("accounts", len(accepted)-len(errs)))
		}
	}
	c.declared.Store(&all)
}

func sameAccounts(accepted []settings.Account, old []declared) bool {
	i := 0
	for _, d := range old {
		if d.reason != "" {
			continue
		}
		if i >= len(accepted) || !reflect.DeepEqual(accepted[i], d.account) {
			return false
		}
		i++
	}
	return i == len(accepted)
}

// followAccounts takes over each change of the resources until ctx ends.
func (c *Controller) followAccounts(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case <-c.resources.Synced():
	}
	for {
		changed := c.resources.Changed()
		c.declare(c.resources.List())
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		}
	}
}

// readAccounts reads the resources once. Where they are not defined, or may not be read, there are only the file's.
func (c *Controller) readAccounts(ctx context.Context) error {
	objects, err := c.cfg.Kube.List(ctx, kube.ECSAccounts, "", "")
	switch {
	case kube.IsNotFound(err), kube.IsForbidden(err):
		c.log.Debug("ecsaccounts not read", slog.String("error", err.Error()))
		return nil
	case err != nil:
		return kube.Explain(err)
	}
	c.declare(objects)
	return nil
}

// mirror returns the ECSAccount that shows an account of the file.
func (d declared) mirror() (*kube.Object, error) {
	o, err := kube.Encode(map[string]any{
		"apiVersion": ecsAccountVersion, "kind": ecsAccountKind,
		"metadata": map[string]any{"name": d.name, "labels": map[string]string{kube.ManagedByLabel: kube.ManagedByValue, originLabel: originFile}},
		"spec":     d.account,
	})
	if err != nil {
		return nil, fmt.Errorf("show account %s: %w", d.account.AccountID(), err)
	}
	return o, nil
}

// fixOf returns what puts an error of an account right.
func fixOf(err error) string {
	if code := diag.CodeOf(err); code != "" {
		if entry, ok := diag.Lookup(code); ok {
			return entry.Fix
		}
	}
	return ""
}
