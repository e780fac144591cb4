// Package certificate keeps the server's TLS certificate: it reads it from files,
// takes over a new one when the files change, and says when it ends.
//
// It promises that there is always one that has worked: a pair that does not belong
// together, as while it is being replaced, is passed over and looked at again. It
// must not know who connects.
package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log/slog"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plinqx/hypha/internal/contain"
)

const (
	// interval is how often the files are looked at. Their contents are compared:
	// neither a time, nor a watch of a folder, tells of every way to replace a file
	// (a link that is turned to another folder, as for secrets of Kubernetes).
	interval = 30 * time.Second
	// maxFile is the most that is read of a file.
	maxFile = 1 << 20
	// soon is how long before its end a certificate is warned of, once in warnEach: of
	// one that lasts short, the last third.
	soon     = 14 * 24 * time.Hour
	warnEach = 24 * time.Hour
)

// Options are what a Certificate needs. The files are required.
type Options struct {
	// CertFile has the certificate and those that lead to its authority, KeyFile its
	// private key, both in PEM.
	CertFile, KeyFile string
	Logger            *slog.Logger     // default: none
	Now               func() time.Time // default: time.Now
	// Guard contains panics. Default: they end the process by themselves.
	Guard *contain.Guard
}

// Certificate is safe for concurrent use. It looks at its files between Start and
// Stop.
type Certificate struct {
	o      Options
	held   atomic.Pointer[tls.Certificate]
	ctx    context.Context //nolint:containedctx // the life of what Start began
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu     sync.Mutex
	tried  pair   // the files' contents that were looked at last, good or not
	failed string // what was wrong last, "" if nothing
	warned time.Time
}

// pair is what the files hold.
type pair struct{ cert, key []byte }

func (p pair) equal(q pair) bool { return bytes.Equal(p.cert, q.cert) && bytes.Equal(p.key, q.key) }

// Open reads the certificate. The error says which file is wrong, and how.
func Open(o Options) (*Certificate, error) {
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	c := &Certificate{o: o}
	c.ctx, c.cancel = context.WithCancel(context.Background())
	p, err := c.read()
	if err != nil {
		return nil, err
	}
	loaded, err := c.parse(p)
	if err != nil {
		return nil, err
	}
	c.tried = p
	c.take(loaded)
	c.warn()
	return c, nil
}

// Config is for a server that shows the certificate, and takes over what it becomes.
// HTTP/2 comes before HTTP/1.1.
func (c *Certificate) Config() *tls.Config {
	return &tls.Config{
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return c.held.Load(), nil },
	}
}

// Expires is when the certificate ends, or one that it stands on.
func (c *Certificate) Expires() time.Time { _, end := span(c.held.Load()); return end }

// Start begins to look at the files, and again each time that something comes on now,
// which may be nil.
func (c *Certificate) Start(now <-chan os.Signal) {
	c.wg.Go(func() {
		tick := time.NewTicker(interval)
		defer tick.Stop()
		for {
			asked := false
			select {
			case <-c.ctx.Done():
				return
			case <-tick.C:
			case <-now:
				asked = true
			}
			_ = c.o.Guard.Try(contain.Background, "looking at the certificate", func() error { c.look(asked); return nil }) // logged; it looks again
		}
	})
}

// Stop ends what Start began.
func (c *Certificate) Stop() {
	c.cancel()
	c.wg.Wait()
}

// look takes over what the files hold, if that is new. What is wrong is said once,
// or each time that somebody asked.
func (c *Certificate) look(asked bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	defer c.warn()
	p, err := c.read()
	if err == nil {
		if p.equal(c.tried) && !asked {
			return
		}
		var loaded *tls.Certificate
		if loaded, err = c.parse(p); err == nil {
			err = c.worse(loaded)
		}
		c.tried = p
		if err == nil {
			c.failed = ""
			c.take(loaded)
			return
		}
	}
	if err.Error() != c.failed || asked {
		c.failed = err.Error()
		c.o.Logger.Warn("the new TLS certificate can't be used; the old one stays", "err", err)
	}
}

// read reads both files. Where they are replaced meanwhile, it begins anew.
func (c *Certificate) read() (p pair, err error) {
	for range 3 {
		if p.cert, err = readFile(c.o.CertFile); err != nil {
			return pair{}, fmt.Errorf("the certificate's file: %w", err)
		}
		if p.key, err = readFile(c.o.KeyFile); err != nil {
			return pair{}, fmt.Errorf("the private key's file: %w", err)
		}
		again, err := readFile(c.o.CertFile)
		if err == nil && bytes.Equal(p.cert, again) {
			break
		}
	}
	return p, nil
}

func readFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }() // it was only read
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return text, err
}

func (c *Certificate) parse(p pair) (*tls.Certificate, error) {
	loaded, err := tls.X509KeyPair(p.cert, p.key)
	if err != nil {
		return nil, fmt.Errorf("%s and %s are not a certificate and its private key in PEM: %w", c.o.CertFile, c.o.KeyFile, err)
	}
	return &loaded, nil
}

// worse is an error if a certificate is out of its time while the old one is not.
func (c *Certificate) worse(loaded *tls.Certificate) error {
	now := c.o.Now()
	in := func(t *tls.Certificate) bool {
		begin, end := span(t)
		return !now.Before(begin) && now.Before(end)
	}
	if in(loaded) || !in(c.held.Load()) {
		return nil
	}
	begin, end := span(loaded)
	return fmt.Errorf("%s is good from %s to %s, which is not now", c.o.CertFile, begin.UTC().Format(time.RFC3339), end.UTC().Format(time.RFC3339))
}

func (c *Certificate) take(loaded *tls.Certificate) {
	c.held.Store(loaded)
	_, end := span(loaded)
	c.warned = time.Time{}
	attrs := []any{"file", c.o.CertFile, "expires", end.UTC()}
	if loaded.Leaf != nil {
		attrs = append(attrs, "names", loaded.Leaf.DNSNames)
	}
	c.o.Logger.Info("TLS certificate", attrs...)
	if open, err := othersRead(c.o.KeyFile); err == nil && open {
		c.o.Logger.Warn("everybody on this machine may read the private key of the TLS certificate; chmod o-rwx it", "file", c.o.KeyFile)
	}
}

// othersRead reports whether a file may be read by others than its owner and group.
// On Windows a file's mode does not tell.
func othersRead(name string) (bool, error) {
	info, err := os.Stat(name)
	if err != nil || runtime.GOOS == "windows" {
		return false, err
	}
	return info.Mode().Perm()&0o007 != 0, nil
}

// warn says that the certificate is about to end, or has. c.mu is held, or nobody
// else has c.
func (c *Certificate) warn() {
	now := c.o.Now()
	begin, end := span(c.held.Load())
	left := end.Sub(now)
	if left > min(soon, end.Sub(begin)/3) || now.Sub(c.warned) < warnEach {
		return
	}
	c.warned = now
	if left <= 0 {
		c.o.Logger.Error("the TLS certificate has expired; clients refuse to connect", "file", c.o.CertFile, "expired", end.UTC())
		return
	}
	c.o.Logger.Warn("the TLS certificate expires soon", "file", c.o.CertFile, "expires", end.UTC(), "left", left.Round(time.Minute).String())
}

// span is when a certificate and all that it is shown with are good.
func span(t *tls.Certificate) (begin, end time.Time) {
	for _, der := range t.Certificate {
		one, err := x509.ParseCertificate(der)
		if err != nil {
			continue // the first could be read; the others are the client's matter
		}
		if begin.IsZero() || one.NotBefore.After(begin) {
			begin = one.NotBefore
		}
		if end.IsZero() || one.NotAfter.Before(end) {
			end = one.NotAfter
		}
	}
	return begin, end
}
