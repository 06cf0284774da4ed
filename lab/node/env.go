package node

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	goruntime "runtime"
	"slices"
	"sort"
	"strconv"
	"strings"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// errContainerConfig marks what is wrong with a container's configuration, such as a missing secret.
var errContainerConfig = errors.New("container configuration")

// environment returns the variables of a container: the API server's address, then envFrom, then env.
func (w *worker) environment(ctx context.Context, spec *corev1.Container) ([]string, error) {
	values := map[string]string{}
	var order []string
	set := func(name, value string) {
		if _, ok := values[name]; !ok {
			order = append(order, name)
		}
		values[name] = value
	}
	for name, value := range kubernetesService(w.n.cfg.KubernetesService) {
		set(name, value)
	}
	slices.Sort(order)
	for _, from := range spec.EnvFrom {
		if err := w.envFrom(ctx, from, set); err != nil {
			return nil, err
		}
	}
	for _, e := range spec.Env {
		value := expand(e.Value, values)
		if e.ValueFrom != nil {
			v, ok, err := w.envValue(ctx, e.ValueFrom, spec)
			if err != nil {
				return nil, fmt.Errorf("variable %s: %w", e.Name, err)
			}
			if !ok {
				continue
			}
			value = v
		}
		set(e.Name, value)
	}
	out := make([]string, 0, len(order))
	for _, name := range order {
		out = append(out, name+"="+values[name])
	}
	return out, nil
}

// kubernetesService returns the variables by which every pod finds the API server.
func kubernetesService(at netip.AddrPort) map[string]string {
	host, port := at.Addr().String(), strconv.Itoa(int(at.Port()))
	url := "tcp://" + at.String()
	return map[string]string{
		"KUBERNETES_SERVICE_HOST": host, "KUBERNETES_SERVICE_PORT": port, "KUBERNETES_SERVICE_PORT_HTTPS": port, "KUBERNETES_PORT": url,
		"KUBERNETES_PORT_" + port + "_TCP": url, "KUBERNETES_PORT_" + port + "_TCP_PROTO": "tcp",
		"KUBERNETES_PORT_" + port + "_TCP_PORT": port, "KUBERNETES_PORT_" + port + "_TCP_ADDR": host,
	}
}

func (w *worker) envFrom(ctx context.Context, from corev1.EnvFromSource, set func(name, value string)) error {
	data := map[string]string{}
	switch {
	case from.ConfigMapRef != nil:
		m, err := w.configMap(ctx, from.ConfigMapRef.Name, from.ConfigMapRef.Optional)
		if err != nil {
			return err
		}
		data = m.Data
	case from.SecretRef != nil:
		s, err := w.secret(ctx, from.SecretRef.Name, from.SecretRef.Optional)
		if err != nil {
			return err
		}
		for k, v := range s.Data {
			data[k] = string(v)
		}
	}
	names := make([]string, 0, len(data))
	for k := range data {
		names = append(names, k)
	}
	sort.Strings(names)
	for _, k := range names {
		set(from.Prefix+k, data[k])
	}
	return nil
}

// envValue resolves a reference. ok is false when an optional one does not exist.
func (w *worker) envValue(ctx context.Context, from *corev1.EnvVarSource, spec *corev1.Container) (value string, ok bool, err error) {
	switch {
	case from.FieldRef != nil:
		value, err = w.field(from.FieldRef.FieldPath)
		return value, err == nil, err
	case from.ResourceFieldRef != nil:
		value, err = resourceField(spec, from.ResourceFieldRef)
		return value, err == nil, err
	case from.ConfigMapKeyRef != nil:
		ref := from.ConfigMapKeyRef
		m, err := w.configMap(ctx, ref.Name, ref.Optional)
		if err != nil {
			return "", false, err
		}
		value, ok = m.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %s in ConfigMap %s/%s", ref.Key, w.namespace, ref.Name)
		}
		return value, ok, nil
	case from.SecretKeyRef != nil:
		ref := from.SecretKeyRef
		s, err := w.secret(ctx, ref.Name, ref.Optional)
		if err != nil {
			return "", false, err
		}
		b, ok := s.Data[ref.Key]
		if !ok && !isTrue(ref.Optional) {
			return "", false, fmt.Errorf("couldn't find key %s in Secret %s/%s", ref.Key, w.namespace, ref.Name)
		}
		return string(b), ok, nil
	}
	return "", false, errors.New("unknown kind of reference")
}

func isTrue(b *bool) bool { return b != nil && *b }

// configMap reads a ConfigMap of the pod's namespace. A missing optional one is empty.
func (w *worker) configMap(ctx context.Context, name string, optional *bool) (*corev1.ConfigMap, error) {
	m, err := w.n.cfg.Kube.CoreV1().ConfigMaps(w.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && isTrue(optional) {
		return &corev1.ConfigMap{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read ConfigMap: %w", err)
	}
	return m, nil
}

// secret reads a Secret of the pod's namespace. A missing optional one is empty.
func (w *worker) secret(ctx context.Context, name string, optional *bool) (*corev1.Secret, error) {
	s, err := w.n.cfg.Kube.CoreV1().Secrets(w.namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) && isTrue(optional) {
		return &corev1.Secret{}, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read Secret: %w", err)
	}
	return s, nil
}

// field returns a field of the pod for the downward API.
func (w *worker) field(path string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	pod := w.pod
	host := w.n.cfg.Address.String()
	ip := ""
	if w.sandbox != nil {
		ip = w.sandbox.Addr().String()
	}
	switch path {
	case "metadata.name":
		return pod.Name, nil
	case "metadata.namespace":
		return pod.Namespace, nil
	case "metadata.uid":
		return string(pod.UID), nil
	case "metadata.labels":
		return mapLines(pod.Labels), nil
	case "metadata.annotations":
		return mapLines(pod.Annotations), nil
	case "spec.nodeName":
		return pod.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return pod.Spec.ServiceAccountName, nil
	case "status.hostIP", "status.hostIPs":
		return host, nil
	case "status.podIP", "status.podIPs":
		return ip, nil
	}
	for prefix, values := range map[string]map[string]string{"metadata.labels": pod.Labels, "metadata.annotations": pod.Annotations} {
		if key, ok := strings.CutPrefix(path, prefix+"['"); ok {
			return values[strings.TrimSuffix(key, "']")], nil
		}
	}
	return "", fmt.Errorf("field %q is not available", path)
}

// mapLines is a map in the form of the downward API: one line per key.
func mapLines(m map[string]string) string {
	lines := make([]string, 0, len(m))
	for k, v := range m {
		lines = append(lines, k+"="+strconv.Quote(v))
	}
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// resourceField returns a container's request or limit. Where there is no limit it is what the machine really has,
// not the capacity that the node claims: programs size their thread pools by it.
func resourceField(spec *corev1.Container, ref *corev1.ResourceFieldSelector) (string, error) {
	kind, name, ok := strings.Cut(ref.Resource, ".")
	list := spec.Resources.Limits
	if kind == "requests" {
		list = spec.Resources.Requests
	}
	if !ok || (kind != "requests" && kind != "limits") {
		return "", fmt.Errorf("resource %q is not available", ref.Resource)
	}
	q, have := list[corev1.ResourceName(name)]
	if !have {
		switch corev1.ResourceName(name) {
		case corev1.ResourceCPU:
			q = *resource.NewQuantity(int64(goruntime.NumCPU()), resource.DecimalSI)
		case corev1.ResourceMemory:
			q = resource.MustParse(capacityMemory)
		case corev1.ResourceEphemeralStorage:
			q = resource.MustParse(capacityDisk)
		default:
			return "", fmt.Errorf("resource %q is not available", ref.Resource)
		}
	}
	divisor := ref.Divisor
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	milli, by := q.MilliValue(), divisor.MilliValue()
	return strconv.FormatInt((milli+by-1)/by, 10), nil
}

// expand replaces $(NAME) by the variable's value. An unknown name is left as it is, and $$ is a dollar sign.
func expand(s string, values map[string]string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '$' || i+1 == len(s) {
			b.WriteByte(s[i])
			continue
		}
		switch s[i+1] {
		case '$':
			b.WriteByte('$')
			i++
		case '(':
			end := strings.IndexByte(s[i:], ')')
			if end < 0 {
				b.WriteByte('$')
				continue
			}
			reference := s[i : i+end+1]
			if v, ok := values[reference[2:len(reference)-1]]; ok {
				reference = v
			}
			b.WriteString(reference)
			i += end
		default:
			b.WriteByte('$')
		}
	}
	return b.String()
}

// expandAll expands a command with the variables of env.
func expandAll(args, env []string) []string {
	values := make(map[string]string, len(env))
	for _, kv := range env {
		if name, value, ok := strings.Cut(kv, "="); ok {
			values[name] = value
		}
	}
	var out []string
	for _, a := range args {
		out = append(out, expand(a, values))
	}
	return out
}
