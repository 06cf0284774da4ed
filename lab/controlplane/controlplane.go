// Package controlplane runs a real Kubernetes control plane and installs a real Istio into it: etcd, kube-apiserver,
// kube-controller-manager and kube-scheduler are unmodified upstream programs, each a child process of its own with
// its own log and life, executed from the isthmus-lab-kube binary. The package itself links none of them.
//
// The API server listens on the address of the lab's router and on loopback, both inside the lab's network namespace,
// so fixed ports never meet those of the host.
package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sync/errgroup"
	"k8s.io/client-go/rest"
)

// The names of the components, as status and logs show them.
const (
	ComponentEtcd              = "etcd"
	ComponentAPIServer         = "kube-apiserver"
	ComponentControllerManager = "kube-controller-manager"
	ComponentScheduler         = "kube-scheduler"
)

// Config says where and how a control plane runs.
type Config struct {
	// Dir holds keys and etcd's data; it is best a tmpfs. It is required.
	Dir string
	// LogDir holds one log per component. It is required.
	LogDir string
	// Binary is the path of isthmus-lab-kube. It is required.
	Binary string
	// Advertise is the address under which pods reach the API server, on APIServerPort. It is required.
	Advertise netip.Addr
	// ServiceCIDR is where ClusterIPs come from; its first address is the Service kubernetes. It is required.
	ServiceCIDR netip.Prefix
	// NodeName is the one node of the lab. It is required.
	NodeName string
	// Log receives the lives of the components. It is required.
	Log *slog.Logger
}

// ControlPlane is a control plane that Run runs.
type ControlPlane struct {
	cfg        Config
	pki        *pki
	components []*Component
}

// New writes the keys and configuration files and returns a control plane that is not running yet.
func New(cfg Config) (*ControlPlane, error) {
	switch {
	case cfg.Dir == "":
		return nil, errors.New("controlplane: Config.Dir is required")
	case cfg.LogDir == "":
		return nil, errors.New("controlplane: Config.LogDir is required")
	case cfg.Binary == "":
		return nil, errors.New("controlplane: Config.Binary is required")
	case !cfg.Advertise.Is4():
		return nil, errors.New("controlplane: Config.Advertise is required and must be an IPv4 address")
	case !cfg.ServiceCIDR.IsValid():
		return nil, errors.New("controlplane: Config.ServiceCIDR is required")
	case cfg.NodeName == "":
		return nil, errors.New("controlplane: Config.NodeName is required")
	case cfg.Log == nil:
		return nil, errors.New("controlplane: Config.Log is required")
	}
	for _, dir := range []string{cfg.Dir, cfg.LogDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make directory: %w", err)
		}
	}
	keys, err := newPKI(filepath.Join(cfg.Dir, "pki"), cfg.NodeName, cfg.Advertise, cfg.ServiceCIDR.Masked().Addr().Next())
	if err != nil {
		return nil, err
	}
	c := &ControlPlane{cfg: cfg, pki: keys}
	for _, user := range []User{ControllerManager, Scheduler} {
		if err := keys.writeKubeconfig(c.kubeconfigPath(user), user, c.Server()); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile(c.schedulerConfigPath(), []byte(schedulerConfig(c.kubeconfigPath(Scheduler))), 0o600); err != nil {
		return nil, fmt.Errorf("write scheduler configuration: %w", err)
	}
	return c, c.addComponents()
}

// addComponents describes the four programs. The API server starts together with etcd, for it waits for etcd by itself
// and its own start takes longer; the two that need a serving API server start when it serves.
func (c *ControlPlane) addComponents() error {
	add := func(name string, args, env []string, after *Component, ready func(context.Context) error) (*Component, error) {
		component, err := NewComponent(ComponentConfig{
			Name: name, Path: c.cfg.Binary, Args: append([]string{name}, args...), Env: env,
			LogPath: filepath.Join(c.cfg.LogDir, name+".log"), Ready: ready, After: after, Log: c.cfg.Log,
		})
		if err != nil {
			return nil, err
		}
		c.components = append(c.components, component)
		return component, nil
	}
	if _, err := add(ComponentEtcd, c.etcdArgs(), nil, nil, c.check(etcdURL+"/health", nil)); err != nil {
		return err
	}
	api, err := add(ComponentAPIServer, c.apiServerArgs(), apiServerEnv(), nil, c.check(c.Server()+"/readyz", c.tlsConfig(Admin)))
	if err != nil {
		return err
	}
	// Both serve their health check under a certificate they sign themselves, on loopback of the lab's own namespace.
	selfSigned := &tls.Config{InsecureSkipVerify: true} //nolint:gosec // nothing secret is sent and nothing is trusted
	if _, err := add(ComponentControllerManager, c.controllerManagerArgs(), nil, api, c.check(controllerManagerURL+"/healthz", selfSigned)); err != nil {
		return err
	}
	_, err = add(ComponentScheduler, c.schedulerArgs(), nil, api, c.check(schedulerURL+"/healthz", selfSigned))
	return err
}

// Run runs every component until ctx ends. They are stopped in the reverse order of their dependencies, so that none
// spends its last seconds trying to reach one that is gone.
func (c *ControlPlane) Run(ctx context.Context) error {
	clients, stopClients := context.WithCancel(context.WithoutCancel(ctx))
	api, stopAPI := context.WithCancel(context.WithoutCancel(ctx))
	store, stopStore := context.WithCancel(context.WithoutCancel(ctx))
	defer stopStore()
	defer stopAPI()
	defer stopClients()
	layers := map[string]context.Context{ComponentEtcd: store, ComponentAPIServer: api}

	var wait [3]sync.WaitGroup
	group, failed := errgroup.WithContext(ctx)
	for _, component := range c.components {
		layer, index := clients, 0
		if l, ok := layers[component.Name()]; ok {
			layer, index = l, 1
			if component.Name() == ComponentEtcd {
				index = 2
			}
		}
		wait[index].Add(1)
		group.Go(func() error {
			defer wait[index].Done()
			return component.Run(layer)
		})
	}
	<-failed.Done() // ctx has ended, or a program could not be started
	stopClients()
	wait[0].Wait()
	stopAPI()
	wait[1].Wait()
	stopStore()
	return group.Wait()
}

// WaitReady returns when the named component is ready.
func (c *ControlPlane) WaitReady(ctx context.Context, name string) error {
	component, err := c.Component(name)
	if err != nil {
		return err
	}
	return component.WaitReady(ctx)
}

// Component returns the component of that name.
func (c *ControlPlane) Component(name string) (*Component, error) {
	for _, component := range c.components {
		if component.Name() == name {
			return component, nil
		}
	}
	return nil, fmt.Errorf("no component %q in the control plane", name)
}

// Components returns all components in start order.
func (c *ControlPlane) Components() []*Component { return c.components }

// Server is the address of the API server inside the lab.
func (c *ControlPlane) Server() string {
	return "https://" + netip.AddrPortFrom(c.cfg.Advertise, APIServerPort).String()
}

// RESTConfig returns a client configuration of user for use inside the lab.
func (c *ControlPlane) RESTConfig(user User) *rest.Config { return c.pki.restConfig(user, c.Server()) }

// WriteKubeconfig writes a kubeconfig of user for an API server that is reached at server.
func (c *ControlPlane) WriteKubeconfig(file string, user User, server string) error {
	return c.pki.writeKubeconfig(file, user, server)
}

// CA returns the certificate authority of the API server and the kubelet API.
func (c *ControlPlane) CA() []byte { return c.pki.ca.certPEM }

// KubeletCertificate returns what the node agent serves its API with.
func (c *ControlPlane) KubeletCertificate() (tls.Certificate, error) {
	pair, err := tls.X509KeyPair(c.pki.kubelet.certPEM, c.pki.kubelet.keyPEM)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("read kubelet certificate: %w", err)
	}
	return pair, nil
}

// tlsConfig returns the client side of TLS towards the API server.
func (c *ControlPlane) tlsConfig(user User) *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(c.pki.ca.cert)
	pair := c.pki.users[user]
	return &tls.Config{
		RootCAs:      pool,
		Certificates: []tls.Certificate{{Certificate: [][]byte{pair.cert.Raw}, PrivateKey: pair.key}},
		MinVersion:   tls.VersionTLS12,
	}
}

// check returns a condition that holds when url answers 200.
func (c *ControlPlane) check(url string, config *tls.Config) func(context.Context) error {
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: config, DisableKeepAlives: true}}
	return func(ctx context.Context) error {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err != nil {
			return err
		}
		response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return fmt.Errorf("%s answered %s", url, response.Status)
		}
		return nil
	}
}
