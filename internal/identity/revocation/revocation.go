// Package revocation reads certificate revocation lists from a file, keeps up with its changes, and says whether a
// verified certificate path holds a certificate that was revoked.
//
// A list counts only if the certificate's issuer signed it; whether the list itself has expired does not, for an old
// list is better than none, and a certificate that no list speaks of is allowed. A file that is missing at the start
// revokes nothing until it appears. One that goes away or cannot be read later leaves what it said last in force.
package revocation

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"math/big"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/isthmus-mesh/isthmus/internal/logattr"
)

// Config configures a List.
type Config struct {
	Path string // required: PEM with any number of lists, or one list in DER
	// Changed is called after the lists have changed; nil is not called.
	Changed  func()
	Interval time.Duration // between looks at the file; 0 means 2s
	Log      *slog.Logger  // required
}

// maxFile limits the size of the file.
const maxFile = 64 << 20

// List is the content of a file of revocation lists. Its methods may be called from any goroutine.
type List struct {
	cfg     Config
	current atomic.Pointer[lists]
	seen    stamp // only Run's goroutine, after New
}

// lists are revocation lists by the raw subject of the issuer.
type lists map[string][]revocations

type revocations struct {
	list    *x509.RevocationList
	serials map[string]struct{} // serial numbers as big-endian bytes
}

// stamp tells one version of the file from another. A symbolic link that is swapped leads to another inode.
type stamp struct {
	inode uint64
	size  int64
	mtime time.Time
}

// RevokedError says which certificate of a path was revoked.
type RevokedError struct {
	Serial  *big.Int
	Subject string // the first URI name, or the distinguished name
}

// Error names the certificate.
func (e *RevokedError) Error() string {
	return fmt.Sprintf("certificate %s with serial number %x is revoked", e.Subject, e.Serial)
}

// New reads the file for the first time. That it does not exist yet is no error; that it cannot be understood is.
func New(cfg Config) (*List, error) {
	switch {
	case cfg.Path == "":
		return nil, errors.New("revocation: Config.Path is required")
	case cfg.Log == nil:
		return nil, errors.New("revocation: Config.Log is required")
	}
	if cfg.Interval == 0 {
		cfg.Interval = 2 * time.Second
	}
	l := &List{cfg: cfg}
	l.current.Store(&lists{})
	_, err := l.load()
	if errors.Is(err, fs.ErrNotExist) {
		cfg.Log.Warn("revocation list does not exist yet, nothing is revoked", logattr.Err(err))
		return l, nil
	}
	return l, err
}

// Run keeps up with the file until ctx ends.
func (l *List) Run(ctx context.Context) error {
	t := time.NewTicker(l.cfg.Interval)
	defer t.Stop()
	var last string
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-t.C:
		}
		changed, err := l.load()
		switch {
		case err != nil && err.Error() != last:
			last = err.Error()
			l.cfg.Log.Warn("revocation list cannot be loaded, the former stays in force", logattr.Err(err))
		case changed:
			last = ""
			l.cfg.Log.Info("revocation list loaded", logattr.Count(l.Len()))
			if l.cfg.Changed != nil {
				l.cfg.Changed()
			}
		}
	}
}

// Len returns how many certificates are revoked.
func (l *List) Len() int {
	n := 0
	for _, rs := range *l.current.Load() {
		for _, r := range rs {
			n += len(r.serials)
		}
	}
	return n
}

// Check returns a *RevokedError if a certificate of the verified path, leaf first and root last, was revoked.
func (l *List) Check(path []*x509.Certificate) error {
	all := *l.current.Load()
	for i := 0; i+1 < len(path); i++ {
		cert, issuer := path[i], path[i+1]
		for _, r := range all[string(issuer.RawSubject)] {
			if _, named := r.serials[string(cert.SerialNumber.Bytes())]; !named {
				continue
			}
			// Names of issuers are not unique: the signature decides whose list it is.
			if issuer.CheckSignature(r.list.SignatureAlgorithm, r.list.RawTBSRevocationList, r.list.Signature) != nil {
				continue
			}
			subject := cert.Subject.String()
			if len(cert.URIs) > 0 {
				subject = cert.URIs[0].String()
			}
			return &RevokedError{Serial: cert.SerialNumber, Subject: subject}
		}
	}
	return nil
}

// load reads the file if it has changed.
func (l *List) load() (changed bool, err error) {
	info, err := os.Stat(l.cfg.Path)
	if err != nil {
		return false, fmt.Errorf("read the revocation list: %w", err)
	}
	now := stamp{size: info.Size(), mtime: info.ModTime()}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		now.inode = st.Ino
	}
	if now == l.seen {
		return false, nil
	}
	text, err := read(l.cfg.Path)
	if err != nil {
		return false, fmt.Errorf("read the revocation list: %w", err)
	}
	parsed, err := parse(text)
	if err != nil {
		return false, fmt.Errorf("read the revocation list %s: %w", l.cfg.Path, err)
	}
	l.seen = now
	l.current.Store(&parsed)
	return true, nil
}

// read reads the file, which may grow meanwhile, up to its limit.
func read(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err == nil && info.Size() > maxFile {
		return nil, fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s has more than %d bytes", path, maxFile)
	}
	return text, err
}

// parse reads lists in PEM, or one in DER. Text without any list is an error, except empty text.
func parse(text []byte) (lists, error) {
	out := lists{}
	if len(bytes.TrimSpace(text)) == 0 {
		return out, nil
	}
	add := func(der []byte) error {
		list, err := x509.ParseRevocationList(der)
		if err != nil {
			return err
		}
		r := revocations{list: list, serials: make(map[string]struct{}, len(list.RevokedCertificateEntries))}
		for _, e := range list.RevokedCertificateEntries {
			r.serials[string(e.SerialNumber.Bytes())] = struct{}{}
		}
		list.RevokedCertificateEntries = nil // the set has them
		out[string(list.RawIssuer)] = append(out[string(list.RawIssuer)], r)
		return nil
	}
	if !bytes.Contains(text, []byte("-----BEGIN")) {
		return out, add(text)
	}
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "X509 CRL" {
			continue
		}
		if err := add(block.Bytes); err != nil {
			return nil, err
		}
	}
	if len(out) == 0 {
		return nil, errors.New("no X509 CRL block in it")
	}
	return out, nil
}
