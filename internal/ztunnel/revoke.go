package ztunnel

import (
	"crypto/x509"
	"fmt"

	"github.com/isthmus-mesh/isthmus/internal/hbone"
	"github.com/isthmus-mesh/isthmus/internal/proxy"
	"github.com/isthmus-mesh/isthmus/internal/telemetry"
)

// rechecker has tunnels whose peers can be revoked.
type rechecker interface{ Recheck() }

// tunnelConfig is how proxies make and accept tunnels.
func (a *app) tunnelConfig() proxy.TunnelConfig {
	t := a.cfg.Tuning
	c := proxy.TunnelConfig{MaxStreams: t.PoolStreams, MaxConns: t.PoolConns, IdleTimeout: t.PoolIdle, Limits: t.Limits, TLS: t.TLS}
	if a.crl != nil {
		c.VerifyPeer = a.verifyPeer
	}
	return c
}

// verifyPeer refuses revoked peers, in a form that the data path knows.
func (a *app) verifyPeer(r telemetry.Reporter, path []*x509.Certificate) error {
	if err := a.crl.Check(path); err != nil {
		a.metrics.Revoked(r)
		return fmt.Errorf("%w: %w", hbone.ErrRevoked, err)
	}
	return nil
}

// recheck ends the tunnels of peers that have been revoked.
func (a *app) recheck() {
	a.mu.Lock()
	all := append([]rechecker(nil), a.tunnels...)
	for _, s := range a.proxies {
		if s.proxy != nil {
			all = append(all, s.proxy)
		}
	}
	a.mu.Unlock()
	for _, r := range all {
		r.Recheck()
	}
}

// alsoRecheck adds something that is not in proxies.
func (a *app) alsoRecheck(r rechecker) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.tunnels = append(a.tunnels, r)
}
