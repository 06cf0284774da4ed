package controlplane

import (
	"fmt"
	"path/filepath"
	"strings"
)

// APIServerPort is where the API server listens, on every address of the lab's network namespace.
const APIServerPort = 6443

// KubeletPort is where the node agent serves the kubelet API.
const KubeletPort = 10250

const (
	etcdURL              = "http://127.0.0.1:2379"
	etcdPeerURL          = "http://127.0.0.1:2380"
	controllerManagerURL = "https://127.0.0.1:10257"
	schedulerURL         = "https://127.0.0.1:10259"
)

// issuer is the issuer of ServiceAccount tokens, the name that an in-cluster API server has by default.
const issuer = "https://kubernetes.default.svc.cluster.local"

// controllers are the parts of kube-controller-manager that the lab needs: those that turn Deployments, DaemonSets,
// StatefulSets and Jobs into pods, those behind Services, and those that make and clean up what comes with a
// namespace. Node lifecycle is left out: one node that is gone means the lab is gone.
var controllers = []string{
	"namespace-controller",
	"serviceaccount-controller",
	"serviceaccount-token-controller",
	"root-ca-certificate-publisher-controller",
	"deployment-controller",
	"replicaset-controller",
	"daemonset-controller",
	"statefulset-controller",
	"job-controller",
	"cronjob-controller",
	"endpoints-controller",
	"endpointslice-controller",
	"endpointslice-mirroring-controller",
	"garbage-collector-controller",
	"pod-garbage-collector-controller",
	"disruption-controller",
	"clusterrole-aggregation-controller",
}

func (c *ControlPlane) kubeconfigPath(user User) string {
	return filepath.Join(c.cfg.Dir, string(user)+".kubeconfig")
}

func (c *ControlPlane) schedulerConfigPath() string {
	return filepath.Join(c.cfg.Dir, "scheduler.yaml")
}

func (c *ControlPlane) etcdArgs() []string {
	return []string{
		"--data-dir=" + filepath.Join(c.cfg.Dir, "etcd"),
		"--listen-client-urls=" + etcdURL,
		"--listen-peer-urls=" + etcdPeerURL,
	}
}

func (c *ControlPlane) apiServerArgs() []string {
	p := c.pki
	return []string{
		"--etcd-servers=" + etcdURL,
		"--bind-address=0.0.0.0",
		fmt.Sprintf("--secure-port=%d", APIServerPort),
		"--advertise-address=" + c.cfg.Advertise.String(),
		"--service-cluster-ip-range=" + c.cfg.ServiceCIDR.String(),
		"--cert-dir=" + p.dir,
		"--tls-cert-file=" + p.path("apiserver.crt"),
		"--tls-private-key-file=" + p.path("apiserver.key"),
		"--client-ca-file=" + p.path("ca.crt"),
		"--kubelet-certificate-authority=" + p.path("ca.crt"),
		"--kubelet-client-certificate=" + p.path("kubelet-client.crt"),
		"--kubelet-client-key=" + p.path("kubelet-client.key"),
		"--kubelet-preferred-address-types=InternalIP",
		"--requestheader-client-ca-file=" + p.path("front-proxy-ca.crt"),
		"--requestheader-allowed-names=front-proxy-client",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--requestheader-group-headers=X-Remote-Group",
		"--requestheader-username-headers=X-Remote-User",
		"--proxy-client-cert-file=" + p.path("front-proxy-client.crt"),
		"--proxy-client-key-file=" + p.path("front-proxy-client.key"),
		"--service-account-issuer=" + issuer,
		"--api-audiences=" + issuer,
		"--service-account-key-file=" + p.path("sa.pub"),
		"--service-account-signing-key-file=" + p.path("sa.key"),
		"--authorization-mode=RBAC",
		// It would taint the new node until node lifecycle, which the lab leaves out, has seen it ready.
		"--disable-admission-plugins=TaintNodesByCondition",
		"--anonymous-auth=false",
		"--allow-privileged=true",
		"--profiling=false",
		"--goaway-chance=0",
	}
}

// apiServerEnv keeps the largest process of the lab within bounds: at 10,000 workload entries it would grow to
// 2.4 GiB by itself and works as well in half of that.
func apiServerEnv() []string { return []string{"GOMEMLIMIT=1200MiB"} }

func (c *ControlPlane) controllerManagerArgs() []string {
	p := c.pki
	return []string{
		"--kubeconfig=" + c.kubeconfigPath(ControllerManager),
		"--bind-address=127.0.0.1",
		"--cert-dir=" + p.dir,
		"--controllers=" + strings.Join(controllers, ","),
		"--leader-elect=false",
		"--service-account-private-key-file=" + p.path("sa.key"),
		"--root-ca-file=" + p.path("ca.crt"),
		"--use-service-account-credentials=true",
		"--kube-api-qps=500",
		"--kube-api-burst=1000",
		"--endpoint-updates-batch-period=0s",
		"--endpointslice-updates-batch-period=0s",
		"--profiling=false",
	}
}

func (c *ControlPlane) schedulerArgs() []string {
	return []string{
		"--config=" + c.schedulerConfigPath(),
		"--bind-address=127.0.0.1",
		"--cert-dir=" + c.pki.dir,
	}
}

func schedulerConfig(kubeconfig string) string {
	return fmt.Sprintf(`apiVersion: kubescheduler.config.k8s.io/v1
kind: KubeSchedulerConfiguration
leaderElection:
  leaderElect: false
clientConnection:
  kubeconfig: %q
  qps: 500
  burst: 1000
podInitialBackoffSeconds: 1
podMaxBackoffSeconds: 2
enableProfiling: false
`, kubeconfig)
}
