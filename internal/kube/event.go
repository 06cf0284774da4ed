package kube

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
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
	kind := corev1.EventTypeNormal
	if e.Warning {
		kind = corev1.EventTypeWarning
	}
	message := e.Message
	if len(message) > maxEventMessage {
		message = strings.ToValidUTF8(message[:maxEventMessage-4], "") + " ..."
	}
	stamp := metav1.NewTime(now)
	sum := sha256.Sum256([]byte(strings.Join([]string{e.About.GetKind(), e.About.GetName(), string(e.About.GetUID()), kind, e.Reason, message}, "\x00")))
	name := strings.ToLower(e.About.GetName())
	if len(name) > 200 {
		name = strings.TrimRight(name[:200], ".-")
	}
	ev := &corev1.Event{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name + "." + hex.EncodeToString(sum[:8])},
		InvolvedObject: corev1.ObjectReference{
			APIVersion: e.About.GetAPIVersion(), Kind: e.About.GetKind(), Namespace: e.About.GetNamespace(), Name: e.About.GetName(), UID: e.About.GetUID(),
		},
		Reason: e.Reason, Message: message, Type: kind, Count: 1, FirstTimestamp: stamp, LastTimestamp: stamp,
		Source: corev1.EventSource{Component: FieldManager}, ReportingController: FieldManager,
	}
	events := c.core.CoreV1().Events(namespace)
	_, err := events.Create(ctx, ev, metav1.CreateOptions{})
	if !apierrors.IsAlreadyExists(err) {
		if err != nil {
			return fmt.Errorf("report %s on %s: %w", e.Reason, Ref(e.About), err)
		}
		return nil
	}
	have, err := events.Get(ctx, ev.Name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("report %s on %s: %w", e.Reason, Ref(e.About), err)
	}
	have.Count++
	have.LastTimestamp = stamp
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
