package broker

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"golang.org/x/net/netutil"
)

// Times and sizes of the server.
const (
	headerTimeout   = 5 * time.Second
	readTimeout     = 10 * time.Second
	writeTimeout    = 30 * time.Second
	idleTimeout     = 30 * time.Second
	maxHeaders      = 8 << 10
	maxConnections  = 1024
	shutdownTimeout = 10 * time.Second
)

// ServerConfig is what Serve needs.
type ServerConfig struct {
	// Listener accepts TCP connections; required. Serve closes it.
	Listener net.Listener
	// Certificate is asked at each handshake, so that a renewed certificate is used at once; required.
	Certificate func(ctx context.Context) (*tls.Certificate, error)
	Log         *slog.Logger // required
}

// Serve answers HTTPS requests with the handler until ctx ends, then lets those in flight finish.
func Serve(ctx context.Context, cfg ServerConfig, handler http.Handler) error {
	if cfg.Listener == nil || cfg.Certificate == nil || cfg.Log == nil {
		return errors.New("broker: ServerConfig.Listener, Certificate and Log are required")
	}
	tlsCfg := &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: []string{"http/1.1"},
		GetCertificate: func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			return cfg.Certificate(hello.Context())
		},
	}
	srv := &http.Server{
		Handler: handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout, IdleTimeout: idleTimeout,
		MaxHeaderBytes: maxHeaders, ErrorLog: slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
		BaseContext: func(net.Listener) context.Context { return context.WithoutCancel(ctx) },
	}
	done := make(chan error, 1)
	go func() {
		done <- srv.Serve(tls.NewListener(netutil.LimitListener(cfg.Listener, maxConnections), tlsCfg))
	}()
	select {
	case err := <-done:
		return fmt.Errorf("serve broker: %w", err)
	case <-ctx.Done():
	}
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err := srv.Shutdown(stop)
	if err != nil {
		_ = srv.Close()
	}
	<-done
	return nil
}
