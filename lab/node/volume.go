package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/isthmus-mesh/isthmus/lab/runtime"
)

// volumeDir is where a volume of the pod is in the lab's file system.
func (w *worker) volumeDir(name string) string { return filepath.Join(w.dir(), "volumes", name) }

// prepareVolumes makes all volumes of the pod.
func (w *worker) prepareVolumes(ctx context.Context) error {
	pod := w.latest()
	for i := range pod.Spec.Volumes {
		v := &pod.Spec.Volumes[i]
		if err := w.prepareVolume(ctx, v); err != nil {
			return fmt.Errorf("MountVolume.SetUp failed for volume %q: %w", v.Name, err)
		}
	}
	return nil
}

func (w *worker) prepareVolume(ctx context.Context, v *corev1.Volume) error {
	switch {
	case v.EmptyDir != nil:
		if err := os.MkdirAll(w.volumeDir(v.Name), 0o755); err != nil {
			return err
		}
		return os.Chmod(w.volumeDir(v.Name), 0o777) // whatever the umask
	case v.HostPath != nil:
		return w.prepareHostPath(v.HostPath)
	case refreshed(v):
		files, err := w.volumeFiles(ctx, v)
		if err != nil {
			return err
		}
		return writeVolume(w.volumeDir(v.Name), files)
	}
	return errors.New("volumes of this kind are not supported by the lab's node agent")
}

// prepareHostPath makes or checks the directory of the lab that stands for a directory of the node. Nothing of the
// host is ever shown to a pod in this way.
func (w *worker) prepareHostPath(h *corev1.HostPathVolumeSource) error {
	path := w.n.hostPath(h.Path)
	kind := corev1.HostPathUnset
	if h.Type != nil {
		kind = *h.Type
	}
	switch kind {
	case corev1.HostPathUnset, corev1.HostPathDirectoryOrCreate:
		return os.MkdirAll(path, 0o755)
	case corev1.HostPathDirectory, corev1.HostPathFile, corev1.HostPathSocket:
		_, err := os.Stat(path)
		if err != nil {
			return fmt.Errorf("hostPath %s does not exist in the lab: %w", h.Path, err)
		}
		return nil
	case corev1.HostPathFileOrCreate:
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		f, err := os.OpenFile(path, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	case corev1.HostPathCharDev, corev1.HostPathBlockDev:
	}
	return fmt.Errorf("hostPath of type %s is not supported by the lab's node agent", kind)
}

// refreshed reports whether a volume's content comes from the API and has to be kept up to date.
func refreshed(v *corev1.Volume) bool {
	return v.ConfigMap != nil || v.Secret != nil || v.DownwardAPI != nil || v.Projected != nil
}

// refreshVolumes keeps the content of volumes up to date until ctx ends.
func (w *worker) refreshVolumes(ctx context.Context) {
	pod := w.latest()
	var volumes []*corev1.Volume
	for i := range pod.Spec.Volumes {
		if refreshed(&pod.Spec.Volumes[i]) {
			volumes = append(volumes, &pod.Spec.Volumes[i])
		}
	}
	last := "" // an error is logged once, not every few seconds while the API server is down
	for wait(ctx, w.n.cfg.VolumeRefresh) {
		var errs []error
		for _, v := range volumes {
			if err := w.prepareVolume(ctx, v); err != nil {
				errs = append(errs, fmt.Errorf("volume %q: %w", v.Name, err))
			}
		}
		if w.identityRequested() {
			errs = append(errs, w.writeIdentityToken(ctx))
		}
		now := ""
		if err := errors.Join(errs...); err != nil {
			now = err.Error()
		}
		if now != last && now != "" && ctx.Err() == nil {
			w.log().Warn("volumes not refreshed, their old content stays", slog.String("error", now))
		}
		last = now
	}
}

// file is one file of a volume.
type file struct {
	data []byte
	mode os.FileMode
}

// volumeFiles returns the content of a volume by path.
func (w *worker) volumeFiles(ctx context.Context, v *corev1.Volume) (map[string]file, error) {
	switch {
	case v.ConfigMap != nil:
		return w.configMapFiles(ctx, v.ConfigMap.Name, v.ConfigMap.Items, v.ConfigMap.Optional, mode(v.ConfigMap.DefaultMode))
	case v.Secret != nil:
		return w.secretFiles(ctx, v.Secret.SecretName, v.Secret.Items, v.Secret.Optional, mode(v.Secret.DefaultMode))
	case v.DownwardAPI != nil:
		return w.downwardFiles(v.DownwardAPI.Items, mode(v.DownwardAPI.DefaultMode))
	}
	files := map[string]file{}
	m := mode(v.Projected.DefaultMode)
	for i := range v.Projected.Sources {
		s := &v.Projected.Sources[i]
		var more map[string]file
		var err error
		switch {
		case s.ConfigMap != nil:
			more, err = w.configMapFiles(ctx, s.ConfigMap.Name, s.ConfigMap.Items, s.ConfigMap.Optional, m)
		case s.Secret != nil:
			more, err = w.secretFiles(ctx, s.Secret.Name, s.Secret.Items, s.Secret.Optional, m)
		case s.DownwardAPI != nil:
			more, err = w.downwardFiles(s.DownwardAPI.Items, m)
		case s.ServiceAccountToken != nil:
			t := s.ServiceAccountToken
			var token string
			token, err = w.tokens.get(ctx, t.Audience, t.ExpirationSeconds)
			more = map[string]file{t.Path: {[]byte(token), m}}
		case s.ClusterTrustBundle != nil && isTrue(s.ClusterTrustBundle.Optional):
		default:
			err = errors.New("a projected source of this kind is not supported by the lab's node agent")
		}
		if err != nil {
			return nil, err
		}
		maps.Copy(files, more)
	}
	return files, nil
}

// mode is the mode of a volume's files.
func mode(m *int32) os.FileMode {
	if m == nil {
		return 0o644
	}
	return os.FileMode(*m) & 0o777
}

func (w *worker) configMapFiles(ctx context.Context, name string, items []corev1.KeyToPath, optional *bool, m os.FileMode) (map[string]file, error) {
	c, err := w.configMap(ctx, name, optional)
	if err != nil {
		return nil, err
	}
	data := maps.Clone(c.BinaryData)
	if data == nil {
		data = map[string][]byte{}
	}
	for k, v := range c.Data {
		data[k] = []byte(v)
	}
	return keyFiles(data, items, isTrue(optional), m)
}

func (w *worker) secretFiles(ctx context.Context, name string, items []corev1.KeyToPath, optional *bool, m os.FileMode) (map[string]file, error) {
	s, err := w.secret(ctx, name, optional)
	if err != nil {
		return nil, err
	}
	return keyFiles(s.Data, items, isTrue(optional), m)
}

// keyFiles chooses the keys that items name, or all of them.
func keyFiles(data map[string][]byte, items []corev1.KeyToPath, optional bool, m os.FileMode) (map[string]file, error) {
	files := map[string]file{}
	if len(items) == 0 {
		for k, v := range data {
			files[k] = file{v, m}
		}
		return files, nil
	}
	for _, item := range items {
		v, ok := data[item.Key]
		if !ok {
			if optional {
				continue
			}
			return nil, fmt.Errorf("references non-existent key %q", item.Key)
		}
		f := file{v, m}
		if item.Mode != nil {
			f.mode = mode(item.Mode)
		}
		files[item.Path] = f
	}
	return files, nil
}

func (w *worker) downwardFiles(items []corev1.DownwardAPIVolumeFile, m os.FileMode) (map[string]file, error) {
	files := map[string]file{}
	for _, item := range items {
		f := file{mode: m}
		if item.Mode != nil {
			f.mode = mode(item.Mode)
		}
		var value string
		var err error
		switch {
		case item.FieldRef != nil:
			value, err = w.field(item.FieldRef.FieldPath)
		case item.ResourceFieldRef != nil:
			w.mu.Lock()
			spec := w.containerByName(item.ResourceFieldRef.ContainerName)
			w.mu.Unlock()
			if spec == nil {
				return nil, fmt.Errorf("no container %q", item.ResourceFieldRef.ContainerName)
			}
			value, err = resourceField(spec, item.ResourceFieldRef)
		}
		if err != nil {
			return nil, err
		}
		f.data = []byte(value)
		files[item.Path] = f
	}
	return files, nil
}

// writeVolume writes the files of a volume so that a reader sees either all old or all new ones: they are in a
// directory of their own, and the link ..data is moved to it in one step.
func writeVolume(dir string, files map[string]file) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for path := range files {
		if !filepath.IsLocal(path) || strings.HasPrefix(path, "..") {
			return fmt.Errorf("file %q is not inside the volume", path)
		}
	}
	data := filepath.Join(dir, "..data")
	old, _ := os.Readlink(data) // none the first time
	if old != "" && sameFiles(filepath.Join(dir, old), files) {
		return nil
	}
	fresh, err := os.MkdirTemp(dir, ".."+time.Now().UTC().Format("2006_01_02_15_04_05."))
	if err != nil {
		return err
	}
	if err := os.Chmod(fresh, 0o755); err != nil {
		return err
	}
	for path, f := range files {
		at := filepath.Join(fresh, path)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(at, f.data, f.mode); err != nil {
			return err
		}
		if err := os.Chmod(at, f.mode); err != nil { // whatever the umask
			return err
		}
	}
	next := filepath.Join(dir, "..data_tmp")
	if err := errors.Join(remove(next), os.Symlink(filepath.Base(fresh), next), os.Rename(next, data)); err != nil {
		return err
	}
	return errors.Join(linkTops(dir, files), removeAll(dir, old))
}

// linkTops makes the visible names of a volume links into ..data, and removes those that are no longer there.
func linkTops(dir string, files map[string]file) error {
	tops := map[string]bool{}
	for path := range files {
		top, _, _ := strings.Cut(filepath.Clean(path), "/")
		tops[top] = true
		if err := os.Symlink(filepath.Join("..data", top), filepath.Join(dir, top)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "..") && !tops[e.Name()] {
			if err := os.Remove(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	return nil
}

func remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

func removeAll(dir, name string) error {
	if name == "" {
		return nil
	}
	return os.RemoveAll(filepath.Join(dir, filepath.Base(name)))
}

// sameFiles reports whether dir holds exactly these files.
func sameFiles(dir string, files map[string]file) bool {
	count := 0
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		count++
		name, err := filepath.Rel(dir, path)
		if err != nil {
			return err
		}
		have, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if want, ok := files[name]; !ok || string(want.data) != string(have) {
			return errors.New("differs")
		}
		return nil
	})
	return err == nil && count == len(files)
}

// mounts returns the mounts of a container.
func (w *worker) mounts(spec *corev1.Container, env []string) ([]runtime.Mount, error) {
	pod := w.latest()
	var out []runtime.Mount
	for _, m := range spec.VolumeMounts {
		var source string
		for i := range pod.Spec.Volumes {
			v := &pod.Spec.Volumes[i]
			switch {
			case v.Name != m.Name:
			case v.HostPath != nil:
				source = w.n.hostPath(v.HostPath.Path)
			default:
				source = w.volumeDir(v.Name)
			}
		}
		if source == "" {
			return nil, fmt.Errorf("no volume named %q", m.Name)
		}
		sub := m.SubPath
		if m.SubPathExpr != "" {
			sub = expandAll([]string{m.SubPathExpr}, env)[0]
		}
		if sub != "" {
			at, err := subPath(source, sub)
			if err != nil {
				return nil, fmt.Errorf("volume %q: %w", m.Name, err)
			}
			source = at
		}
		target := m.MountPath
		if !filepath.IsAbs(target) {
			target = "/" + target
		}
		out = append(out, runtime.Mount{Source: source, Target: target, ReadOnly: m.ReadOnly})
	}
	return out, nil
}

// subPath returns a path inside a volume, which must not lead out of it. A missing one is made as a directory.
func subPath(volume, sub string) (string, error) {
	if !filepath.IsLocal(sub) {
		return "", fmt.Errorf("subPath %q is not inside the volume", sub)
	}
	path := filepath.Join(volume, sub)
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := os.MkdirAll(path, 0o777); err != nil {
			return "", fmt.Errorf("make subPath %q: %w", sub, err)
		}
	}
	root, err := filepath.EvalSymlinks(volume)
	if err != nil {
		return "", err
	}
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", err
	}
	if inside, err := filepath.Rel(root, real); err != nil || !filepath.IsLocal(inside) {
		return "", fmt.Errorf("subPath %q leads out of the volume", sub)
	}
	return real, nil
}
