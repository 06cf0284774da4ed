package runtime

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
)

// ErrImageNotFound says that the catalogue has no program for an image. It is what a registry's "not found" would be.
var ErrImageNotFound = errors.New("image not found")

// Image is what an image name stands for in the lab.
type Image struct {
	// Ref is the reference that was resolved.
	Ref string
	// Entrypoint and Cmd are as in an image's configuration: Cmd holds the arguments that a caller may replace.
	Entrypoint []string
	Cmd        []string
	// Env are the image's own variables.
	Env []string
	// Files are programs that the container sees beside the host's: path in the container to path in the lab.
	Files map[string]string
}

// Catalogue maps the repository names of images to Images. Its methods may be called from several goroutines.
type Catalogue struct {
	mu     sync.Mutex
	images map[string]Image // guarded by mu; by repository without registry
}

// CatalogueConfig says where the programs of the images are.
type CatalogueConfig struct {
	// Executable is the program with the lab's own images; it must call MaybeInit. Empty means the running executable.
	Executable string
	// BinDirs are searched, in order, for ztunnel, isthmus-controller and isthmus-lab-kube. Empty means the directory
	// of Executable, then PATH.
	BinDirs []string
}

// imagePath is the PATH that images have.
const imagePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// curlEntrypoint behaves as the entry point of the curl images: arguments that are not a command are curl's.
const curlEntrypoint = `case "${1-}" in -*) exec curl "$@";; esac
command -v -- "${1-}" >/dev/null 2>&1 || exec curl "$@"
exec "$@"`

// NewCatalogue returns the catalogue of the lab. A program that is not there yet is looked for again at every
// Resolve, so the order of starting does not matter.
func NewCatalogue(cfg CatalogueConfig) (*Catalogue, error) {
	if cfg.Executable == "" {
		exe, err := os.Executable()
		if err != nil {
			return nil, fmt.Errorf("image catalogue: find the running executable: %w", err)
		}
		cfg.Executable = exe
	}
	if len(cfg.BinDirs) == 0 {
		cfg.BinDirs = append([]string{filepath.Dir(cfg.Executable)}, filepath.SplitList(os.Getenv("PATH"))...)
	}
	c := &Catalogue{images: map[string]Image{}}
	curl := Image{Entrypoint: []string{"/bin/sh", "-c", curlEntrypoint, "curl-entrypoint"}, Cmd: []string{"curl", "--help"}}
	shell := Image{Cmd: []string{"/bin/sh"}}
	echo := Image{
		Entrypoint: []string{"/usr/local/bin/isthmus-lab", "image", "echo-server"},
		Files:      map[string]string{"/usr/local/bin/isthmus-lab": cfg.Executable},
	}
	load := echo
	load.Entrypoint = []string{"/usr/local/bin/isthmus-lab", "image", "load"}
	program := func(path, name string, argv ...string) Image {
		return Image{Entrypoint: append([]string{path}, argv...), Files: map[string]string{path: findProgram(cfg.BinDirs, name)}}
	}
	httpsEcho := echo
	httpsEcho.Env = []string{"HTTP_PORT=8080"}
	pilot := program("/usr/local/bin/pilot-discovery", "isthmus-lab-kube")
	for repository, image := range map[string]Image{
		"curlimages/curl": curl, "alpine/curl": curl,
		"nicolaka/netshoot": shell, "busybox": shell, "alpine": shell,
		"ealen/echo-server": echo, "mendhak/http-https-echo": httpsEcho, "isthmus/echo": echo, "isthmus/load": load,
		"istio/ztunnel": program("/usr/local/bin/ztunnel", "ztunnel"), "isthmus/ztunnel": program("/usr/local/bin/ztunnel", "ztunnel"),
		"isthmus/controller":         program("/usr/local/bin/isthmus-controller", "isthmus-controller"),
		"isthmus/isthmus-controller": program("/usr/local/bin/isthmus-controller", "isthmus-controller"),
		"istio/pilot":                pilot,
	} {
		c.Add(repository, image)
	}
	return c, nil
}

// findProgram returns the first executable file of that name. When there is none it returns the place where the first
// directory would have it, so that Resolve can name it.
func findProgram(dirs []string, name string) string {
	for _, d := range dirs {
		p := filepath.Join(d, name)
		if st, err := os.Stat(p); err == nil && st.Mode().IsRegular() && st.Mode()&0o111 != 0 {
			return p
		}
	}
	if p, err := exec.LookPath(name); err == nil {
		return p
	}
	return filepath.Join(dirs[0], name)
}

// Add puts an image into the catalogue, or replaces it. repository is its name without registry, tag and digest, for
// example "ealen/echo-server" or "busybox".
func (c *Catalogue) Add(repository string, image Image) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.images[repository] = image
}

// Names returns the repositories of the catalogue, sorted.
func (c *Catalogue) Names() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Sorted(maps.Keys(c.images))
}

// Resolve returns the image of a reference. Any registry, tag and digest match; the error of an unknown image is
// ErrImageNotFound and lists the images that there are.
func (c *Catalogue) Resolve(ref string) (Image, error) {
	repository := repositoryOf(ref)
	c.mu.Lock()
	image, ok := c.images[repository]
	if !ok { // a mirror may keep images below a project: registry/project/istio/pilot
		if parts := strings.Split(repository, "/"); len(parts) > 2 {
			image, ok = c.images[strings.Join(parts[len(parts)-2:], "/")]
		}
	}
	c.mu.Unlock()
	if !ok {
		return Image{}, fmt.Errorf("%q: %w: the lab has no program for it, only for %s", ref, ErrImageNotFound, strings.Join(c.Names(), ", "))
	}
	for _, host := range image.Files {
		if _, err := os.Stat(host); err != nil {
			return Image{}, fmt.Errorf("%q: %w: its program %s is not built", ref, ErrImageNotFound, filepath.Base(host))
		}
	}
	image.Ref = ref
	image.Env = append([]string{imagePath}, image.Env...)
	image.Entrypoint, image.Cmd = slices.Clone(image.Entrypoint), slices.Clone(image.Cmd)
	image.Files = maps.Clone(image.Files)
	return image, nil
}

// repositoryOf strips registry, tag, digest and Docker Hub's "library/" off an image reference.
func repositoryOf(ref string) string {
	ref, _, _ = strings.Cut(ref, "@")
	if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
		ref = ref[:i]
	}
	if first, rest, ok := strings.Cut(ref, "/"); ok && (strings.ContainsAny(first, ".:") || first == "localhost") {
		ref = rest
	}
	return strings.TrimPrefix(ref, "library/")
}
