package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// Relays that others made, as mutual TLS relays: TLS 1.3, certificates on both sides, a handshake per connection.

// outside starts a program on both hosts with a configuration file each, and waits until it listens.
func (b *bench) outside(c *contestant, program string, args func(file string) []string, client, server string) {
	start := func(ns *netns, name, text string, port int) *process {
		file := filepath.Join(b.h.dir, name+".conf")
		b.h.must("configure "+name, os.WriteFile(file, []byte(text), 0o600))
		p := ns.start(b.h, name, nil, program, args(file)...)
		ns.until(b.h, "it listens", p, func() bool { return reachable(fmt.Sprintf("127.0.0.1:%d", port)) })
		return p
	}
	c.proxies = []*process{
		start(c.hosts.client, c.name+"-1", client, echoPort),
		start(c.hosts.server, c.name+"-2", server, echoPort+relayShift),
	}
	c.perConn = 6 // two sockets, and what the program thinks it needs
}

func (b *bench) haproxy(c *contestant) {
	const head = `global
  maxconn 6000
  ssl-default-bind-options ssl-min-ver TLSv1.3 no-tls-tickets
  ssl-default-server-options ssl-min-ver TLSv1.3 no-tls-tickets
defaults
  mode tcp
  timeout connect 10s
  timeout client 10m
  timeout server 10m
`
	both := filepath.Join(b.h.dir, "both.pem")
	client, server := head, head
	for _, port := range []int{echoPort, sinkPort} {
		client += fmt.Sprintf("listen p%d\n  bind 127.0.0.1:%d\n  server s %s:%d ssl crt %s ca-file %s verify required no-ssl-reuse\n",
			port, port, serverIP, port+relayShift, both, b.pems.Root)
		server += fmt.Sprintf("listen p%d\n  bind 0.0.0.0:%d ssl crt %s ca-file %s verify required\n  server s 127.0.0.1:%d\n",
			port, port+relayShift, both, b.pems.Root, port)
	}
	b.outside(c, "haproxy", func(file string) []string { return []string{"-db", "-f", file} }, client, server)
}

func (b *bench) stunnel(c *contestant) {
	head := fmt.Sprintf(`foreground = yes
syslog = no
debug = warning
cert = %s
key = %s
CAfile = %s
verifyChain = yes
sslVersionMin = TLSv1.3
sessionResume = no
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
`, b.pems.Cert, b.pems.Key, b.pems.Root)
	var client, server strings.Builder
	client.WriteString(head)
	server.WriteString(head)
	for _, port := range []int{echoPort, sinkPort} {
		fmt.Fprintf(&client, "[p%d]\nclient = yes\naccept = 127.0.0.1:%d\nconnect = %s:%d\n", port, port, serverIP, port+relayShift)
		fmt.Fprintf(&server, "[p%d]\nclient = no\naccept = 0.0.0.0:%d\nconnect = 127.0.0.1:%d\n", port, port+relayShift, port)
	}
	b.outside(c, "stunnel", func(file string) []string { return []string{file} }, client.String(), server.String())
}
