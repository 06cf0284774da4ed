package ztunnel

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
)

// Limits of what is read from files.
const (
	maxTokenFile = 64 << 10
	maxRootFile  = 4 << 20
)

// readLimited reads a file, and refuses one of more than max bytes.
func readLimited(path string, max int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, max+1))
	if err == nil && int64(len(text)) > max {
		return nil, fmt.Errorf("%s has more than %d bytes", path, max)
	}
	return text, err
}

// tokenOf returns a function that reads the bearer token: from a file each time, or the value itself. It is nil when
// there is no token.
func tokenOf(value string) func(context.Context) (string, error) {
	if value == "" {
		return nil
	}
	if _, err := os.Stat(value); err != nil {
		return func(context.Context) (string, error) { return value, nil }
	}
	return func(context.Context) (string, error) {
		text, err := readLimited(value, maxTokenFile)
		if err != nil {
			return "", fmt.Errorf("AUTH_TOKEN: %w", err)
		}
		text = bytes.TrimSpace(text)
		if len(text) == 0 {
			return "", fmt.Errorf("AUTH_TOKEN: %s holds no usable token", value)
		}
		return string(text), nil
	}
}

func parseJSON(s string) (any, error) {
	var v any
	if err := json.Unmarshal([]byte(s), &v); err != nil {
		return nil, fmt.Errorf("not JSON: %w", err)
	}
	return v, nil
}

// ownAddress returns the address by which others reach this host: the first that is neither loopback nor link-local,
// IPv4 first. ECS tasks have a link-local address too, on which only their metadata is served.
func ownAddress() (netip.Addr, error) {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return netip.Addr{}, fmt.Errorf("find the own address: %w", err)
	}
	var found netip.Addr
	for _, a := range addrs {
		ipn, ok := a.(*net.IPNet)
		if !ok {
			continue
		}
		ip, ok := netip.AddrFromSlice(ipn.IP)
		if ip = ip.Unmap(); !ok || !ip.IsGlobalUnicast() {
			continue
		}
		if !found.IsValid() || ip.Is4() && !found.Is4() {
			found = ip
		}
	}
	if !found.IsValid() {
		return found, errors.New("find the own address: there is none; set INSTANCE_IP")
	}
	return found, nil
}

// rootsOf returns a function that reads trust roots: from a file each time, from the system, or from the text itself.
func rootsOf(key, value string) (func() (*x509.CertPool, error), error) {
	if value == "SYSTEM" {
		return x509.SystemCertPool, nil
	}
	if strings.Contains(value, "-----BEGIN") {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(value)) {
			return nil, fmt.Errorf("%s: no certificate in the PEM text", key)
		}
		return func() (*x509.CertPool, error) { return pool, nil }, nil
	}
	read := func() (*x509.CertPool, error) {
		text, err := readLimited(value, maxRootFile)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", key, err)
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(text) {
			return nil, fmt.Errorf("%s: no certificate in %s", key, value)
		}
		return pool, nil
	}
	_, err := read()
	return read, err
}
