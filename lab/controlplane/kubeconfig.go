package controlplane

import (
	"fmt"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// contextName is the one context of every kubeconfig of the lab.
const contextName = "isthmus-lab"

// kubeconfig returns a self-contained kubeconfig of user for the API server at the given address.
func (p *pki) kubeconfig(user User, server string) *clientcmdapi.Config {
	pair := p.users[user]
	c := clientcmdapi.NewConfig()
	c.Clusters[contextName] = &clientcmdapi.Cluster{Server: server, CertificateAuthorityData: p.ca.certPEM}
	c.AuthInfos[string(user)] = &clientcmdapi.AuthInfo{ClientCertificateData: pair.certPEM, ClientKeyData: pair.keyPEM}
	c.Contexts[contextName] = &clientcmdapi.Context{Cluster: contextName, AuthInfo: string(user)}
	c.CurrentContext = contextName
	return c
}

// writeKubeconfig stores the kubeconfig of user in file, readable by its owner only.
func (p *pki) writeKubeconfig(file string, user User, server string) error {
	if err := clientcmd.WriteToFile(*p.kubeconfig(user, server), file); err != nil {
		return fmt.Errorf("write kubeconfig of %s: %w", user, err)
	}
	return nil
}

// restConfig returns the client configuration of user, without a client-side rate limit: the lab's API server has only
// the lab's own clients, and a limit would only make start-up slower.
func (p *pki) restConfig(user User, server string) *rest.Config {
	pair := p.users[user]
	return &rest.Config{
		Host:            server,
		TLSClientConfig: rest.TLSClientConfig{CAData: p.ca.certPEM, CertData: pair.certPEM, KeyData: pair.keyPEM},
		QPS:             -1,
		UserAgent:       "isthmus-lab",
	}
}
