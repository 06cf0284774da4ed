package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

// maxEventMessage is the API server's own bound.
const maxEventMessage = 1024

// Event is something that a person who looks at an object should know.
type Event struct {
	// About is the object: its kind, apiVersion, namespace and name; a uid makes `kubectl describe` show the event.
	About *Object
	// Warning makes it a Warning; otherwise it is Normal.
	Warning bool
	// Reason is one word in camel case; Message says what and how to mend it.
	Reason  string
	Message string
}

// Report writes an event. An event that was written before is counted up instead of repeated, so a problem that lasts
// is one line with a growing count in `kubectl get events`.
func (c *Client) Report(ctx context.Context, e Event, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	namespace := e.About.GetNamespace()
	if namespace == "" {
		namespace = metav1.NamespaceDefault // where events about cluster-scoped objects live
		if e.About.GetKind() == "Namespace" {
			namespace = e.About.GetName()
		}
	}
	kind := "Normal"
	if e.Warning {
		kind = "Warning"
	}
	message := e.Message
	if len(message) > maxEventMessage {
		message = strings.ToValidUTF8(message[:maxEventMessage-4], "") + " ..."
	}
	stamp := now.UTC().Format(time.RFC3339)
	sum := sha256.Sum256([]byte(strings.Join([]string{e.About.GetKind(), e.About.GetName(), string(e.About.GetUID()), kind, e.Reason, message}, "\x00")))
	name := strings.ToLower(e.About.GetName())
	if len(name) > 200 {
		name = strings.TrimRight(name[:200], ".-")
	}
	about := map[string]any{"apiVersion": e.About.GetAPIVersion(), "kind": e.About.GetKind(), "name": e.About.GetName()}
	if ns := e.About.GetNamespace(); ns != "" {
		about["namespace"] = ns
	}
	if uid := e.About.GetUID(); uid != "" {
		about["uid"] = string(uid)
	}
	ev := &Object{Object: map[string]any{
		"apiVersion": "v1", "kind": "Event",
		"metadata":       map[string]any{"namespace": namespace, "name": name + "." + hex.EncodeToString(sum[:8])},
		"involvedObject": about, "reason": e.Reason, "message": message, "type": kind, "count": int64(1),
		"firstTimestamp": stamp, "lastTimestamp": stamp, "source": map[string]any{"component": FieldManager}, "reportingComponent": FieldManager,
	}}
	events := c.dyn.Resource(Events).Namespace(namespace)
	_, err := events.Create(ctx, ev, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return fmt.Errorf("report %s on %s: %w", e.Reason, Ref(e.About), err)
		}
		return nil
	}
	have, err := events.Get(ctx, ev.GetName(), metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("report %s on %s: %w", e.Reason, Ref(e.About), err)
	}
	count, _, _ := unstructured.NestedInt64(have.Object, "count")
	have.Object["count"], have.Object["lastTimestamp"] = count+1, stamp
	if _, err := events.Update(ctx, have, metav1.UpdateOptions{}); err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("report %s on %s: %w", e.Reason, Ref(e.About), err)
	}
	return nil
}

// NamespaceObject returns an Object that names a namespace, for events about one that may not be readable.
func NamespaceObject(name string) *Object {
	o := &Object{}
	o.SetAPIVersion("v1")
	o.SetKind("Namespace")
	o.SetName(name)
	return o
}
