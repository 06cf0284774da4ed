package node

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func parseQuantity(s string) *resource.Quantity {
	q := resource.MustParse(s)
	return &q
}

// associations is a PodIdentity for the service accounts that it names.
type associations map[string]bool

func (a associations) Association(_ context.Context, namespace, account string) bool {
	return a[namespace+"/"+account]
}

func TestVolumes(t *testing.T) {
	kube := fakeKube()
	settings := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: "settings"}, Data: map[string]string{"a": "1", "b": "2"}}
	if _, err := kube.CoreV1().ConfigMaps("default").Create(t.Context(), settings, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	n := startNode(t, kube, func(c *Config) { c.PodIdentity = associations{"default/web": true} })
	seconds, optional := int64(3600), true
	spec := podSpec("volumes", "sleep 1000")
	spec.Spec.Volumes = []corev1.Volume{
		{Name: "map", VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}}}},
		{Name: "late", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "late"}}},
		{Name: "none", VolumeSource: corev1.VolumeSource{Secret: &corev1.SecretVolumeSource{SecretName: "none", Optional: &optional}}},
		{Name: "host", VolumeSource: corev1.VolumeSource{HostPath: &corev1.HostPathVolumeSource{Path: "/etc"}}},
		{Name: "all", VolumeSource: corev1.VolumeSource{Projected: &corev1.ProjectedVolumeSource{Sources: []corev1.VolumeProjection{
			{ServiceAccountToken: &corev1.ServiceAccountTokenProjection{Audience: "istio-ca", ExpirationSeconds: &seconds, Path: "token"}},
			{ConfigMap: &corev1.ConfigMapProjection{LocalObjectReference: corev1.LocalObjectReference{Name: "settings"}, Items: []corev1.KeyToPath{{Key: "a", Path: "sub/a"}}}},
			{DownwardAPI: &corev1.DownwardAPIProjection{Items: []corev1.DownwardAPIVolumeFile{{Path: "namespace", FieldRef: &corev1.ObjectFieldSelector{FieldPath: "metadata.namespace"}}}}},
		}}}},
	}
	spec.Spec.Containers[0].VolumeMounts = []corev1.VolumeMount{
		{Name: "map", MountPath: "/etc/settings"}, {Name: "late", MountPath: "/late"}, {Name: "none", MountPath: "/none"}, {Name: "host", MountPath: "/hostetc"},
		{Name: "all", MountPath: "/var/run/secrets/all", ReadOnly: true}, {Name: "map", MountPath: "/one/b", SubPath: "b"},
	}
	pod := n.create(t, spec)
	// The pod waits for its secret.
	eventually(t, "waiting for a secret", func() bool {
		events, err := kube.CoreV1().Events("default").List(t.Context(), metav1.ListOptions{})
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range events.Items {
			if e.Reason == "FailedMount" && strings.Contains(e.Message, "late") {
				return true
			}
		}
		return false
	}, func() string { return "no event" })
	late := &corev1.Secret{ObjectMeta: metav1.ObjectMeta{Name: "late"}, Data: map[string][]byte{"key": []byte("here")}}
	if _, err := kube.CoreV1().Secrets("default").Create(t.Context(), late, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	n.until(t, pod, "ready", ready)
	for _, test := range []struct{ script, want string }{
		{"cat /etc/settings/a /etc/settings/b /one/b", "122"},
		{"cat /late/key; ls /none | wc -l; ls /hostetc | wc -l", "here0\n0\n"},
		{"cat /var/run/secrets/all/token", "token-1 for [istio-ca] bound to volumes"},
		{"cat /run/secrets/all/sub/a /run/secrets/all/namespace", "1default"},
		{"touch /run/secrets/all/x 2>/dev/null || echo refused", "refused\n"},
		{"cat $AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE; echo; echo $AWS_CONTAINER_CREDENTIALS_FULL_URI $AWS_REGION",
			"token-2 for [pods.eks.amazonaws.com] bound to volumes\nhttp://169.254.170.23/v1/credentials us-east-2\n"},
	} {
		if got := n.run(t, pod, "sh", "-c", test.script); got != test.want {
			t.Errorf("%s\n got %q\nwant %q", test.script, got, test.want)
		}
	}
	settings.Data = map[string]string{"a": "changed", "c": "3"}
	if _, err := kube.CoreV1().ConfigMaps("default").Update(t.Context(), settings, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	eventually(t, "refreshed", func() bool { return n.run(t, pod, "sh", "-c", "cd /etc/settings && cat a; ls") == "changeda\nc\n" },
		func() string { return n.run(t, pod, "sh", "-c", "cd /etc/settings && cat a; ls -la") })
}

func TestWriteVolumeIsAtomicAndRefusesToLeave(t *testing.T) {
	dir := t.TempDir()
	if err := writeVolume(dir, map[string]file{"a": {[]byte("1"), 0o600}, "sub/b": {[]byte("2"), 0o644}}); err != nil {
		t.Fatal(err)
	}
	before, err := os.Readlink(filepath.Join(dir, "..data"))
	if err != nil {
		t.Fatal(err)
	}
	if err := writeVolume(dir, map[string]file{"a": {[]byte("1"), 0o600}, "sub/b": {[]byte("2"), 0o644}}); err != nil {
		t.Fatal(err)
	}
	if after, _ := os.Readlink(filepath.Join(dir, "..data")); after != before {
		t.Error("unchanged content was written again")
	}
	if err := writeVolume(dir, map[string]file{"a": {[]byte("3"), 0o600}}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(dir, "sub")); err == nil {
		t.Error("a removed directory is still visible")
	}
	if st, err := os.Stat(filepath.Join(dir, "a")); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st, err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 3 { // ..data, what it leads to, and a
		t.Errorf("entries %v, %v", entries, err)
	}
	for _, path := range []string{"../x", "/x", "..x", "a/../../x"} {
		if err := writeVolume(dir, map[string]file{path: {nil, 0o644}}); err == nil {
			t.Errorf("file %q was accepted", path)
		}
	}
}

func TestSubPathStaysInTheVolume(t *testing.T) {
	dir := t.TempDir()
	if err := os.Symlink("/etc", filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	for _, sub := range []string{"..", "../x", "out", "out/passwd", "/etc"} {
		if got, err := subPath(dir, sub); err == nil {
			t.Errorf("subPath(%q) = %q, want an error", sub, got)
		}
	}
	if got, err := subPath(dir, "new/dir"); err != nil || got != filepath.Join(dir, "new/dir") {
		t.Errorf("subPath(new/dir) = %q, %v", got, err)
	}
}

func TestTokenIsReplacedInTime(t *testing.T) {
	now := time.Now()
	for _, test := range []struct {
		age, life time.Duration
		due       bool
	}{
		{0, time.Hour, false}, {47 * time.Minute, time.Hour, false}, {49 * time.Minute, time.Hour, true},
		{23 * time.Hour, 1000 * time.Hour, false}, {25 * time.Hour, 1000 * time.Hour, true},
	} {
		token := issuedToken{issued: now.Add(-test.age), expires: now.Add(test.life - test.age)}
		if got := token.due(now); got != test.due {
			t.Errorf("a token of %v that lives %v: due = %v", test.age, test.life, got)
		}
	}
}

func TestExpand(t *testing.T) {
	values := map[string]string{"A": "1", "B": "$(A)"}
	for in, want := range map[string]string{
		"$(A)": "1", "x$(A)y": "x1y", "$(C)": "$(C)", "$$(A)": "$(A)", "$(B)": "$(A)", "$": "$", "$(A": "$(A", "$A": "$A", "a$$b": "a$b", "": "",
	} {
		if got := expand(in, values); got != want {
			t.Errorf("expand(%q) = %q, want %q", in, got, want)
		}
	}
}
