package main

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
)

// The helper processes. Each ends when its standard input does, and says "ready" once it listens.
const (
	roleServer = "server" // the application
	roleTCP    = "tcp"    // a relay
	roleTLSIn  = "tls-in"
	roleTLSOut = "tls-out"
	roleAgent  = "agent" // the load
)

// relayConfig is what a relay is told, as JSON in its environment.
type relayConfig struct {
	Routes          map[string]string // listen address to destination
	Cert, Key, Root string            // PEM files
}

const relayEnv = "ISTHMUS_BENCH_RELAY"

func runRole(name string, stdin io.Reader, stdout, stderr io.Writer) int {
	raiseDescriptorLimit()
	var err error
	switch name {
	case roleServer:
		err = serveApplication()
	case roleTCP, roleTLSIn, roleTLSOut:
		err = serveRelay(name)
	case roleAgent:
		err = serveJobs(stdin, stdout)
		if err == nil {
			return 0
		}
	default:
		err = fmt.Errorf("unknown role %q", name)
	}
	if err != nil {
		fmt.Fprintf(stderr, "bench: %s: %v\n", name, err)
		return 1
	}
	fmt.Fprintln(stdout, "ready")
	_, _ = io.Copy(io.Discard, stdin)
	return 0
}

func listen(addr string, serve func(c *net.TCPConn)) error {
	l, err := net.Listen("tcp4", addr)
	if err != nil {
		return err
	}
	go func() {
		for {
			c, err := l.Accept()
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				continue // out of descriptors; somebody is going to close some
			}
			go serve(c.(*net.TCPConn))
		}
	}()
	return nil
}

// serveApplication serves echo and sink. Buffers are taken when there is something to read, so that idle connections
// cost the application little; it is not what is measured.
func serveApplication() error {
	if err := listen(fmt.Sprintf(":%d", echoPort), echo); err != nil {
		return err
	}
	return listen(fmt.Sprintf(":%d", sinkPort), func(c *net.TCPConn) {
		defer c.Close()
		buf := make([]byte, 256<<10)
		for {
			if _, err := c.Read(buf); err != nil {
				return
			}
		}
	})
}

func echo(c *net.TCPConn) {
	defer c.Close()
	buf := make([]byte, 4<<10)
	for {
		n, err := c.Read(buf)
		if err != nil {
			return
		}
		if _, err := c.Write(buf[:n]); err != nil {
			return
		}
	}
}

func serveRelay(kind string) error {
	var cfg relayConfig
	if err := json.Unmarshal([]byte(os.Getenv(relayEnv)), &cfg); err != nil {
		return err
	}
	var tc *tls.Config
	if kind != roleTCP {
		var err error
		if tc, err = cfg.tls(); err != nil {
			return err
		}
	}
	for from, to := range cfg.Routes {
		if err := listen(from, func(c *net.TCPConn) {
			d, err := net.Dial("tcp4", to)
			if err != nil {
				_ = c.SetLinger(0)
				c.Close()
				return
			}
			var in, out duplex = c, d.(*net.TCPConn)
			switch kind {
			case roleTLSIn:
				in = tls.Server(c, tc)
			case roleTLSOut:
				out = tls.Client(d, tc)
			}
			join(in, out)
		}); err != nil {
			return err
		}
	}
	return nil
}

// tls is what HBONE uses: TLS 1.3, both sides show a certificate, names are not host names, no tickets, full records.
func (cfg *relayConfig) tls() (*tls.Config, error) {
	pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
	if err != nil {
		return nil, err
	}
	root, err := os.ReadFile(cfg.Root)
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(root)
	return &tls.Config{
		MinVersion: tls.VersionTLS13, Certificates: []tls.Certificate{pair}, ClientAuth: tls.RequireAnyClientCert,
		SessionTicketsDisabled: true, DynamicRecordSizingDisabled: true,
		InsecureSkipVerify: true, //nolint:gosec // VerifyConnection verifies the chain
		VerifyConnection: func(cs tls.ConnectionState) error {
			_, err := cs.PeerCertificates[0].Verify(x509.VerifyOptions{Roots: roots, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
			return err
		},
	}, nil
}

type duplex interface {
	net.Conn
	CloseWrite() error
}

// join copies both ways and passes half-closes on. Between TCP connections io.Copy splices.
func join(a, z duplex) {
	defer a.Close()
	defer z.Close()
	var wg sync.WaitGroup
	wg.Go(func() { transfer(z, a) })
	transfer(a, z)
	wg.Wait()
}

func transfer(to, from duplex) {
	_, err := io.Copy(to, from)
	if err != nil {
		to.Close()
		from.Close()
		return
	}
	_ = to.CloseWrite()
}
