package certificate_test

import (
	"bytes"
	"crypto/tls"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plinqx/hypha/internal/certificate"
	"github.com/plinqx/hypha/internal/certificate/certificatetest"
)

// files is a folder with a pair in it, and the log of who uses it.
type files struct {
	t   *testing.T
	dir string

	mu  sync.Mutex
	log bytes.Buffer
}

func (f *files) Write(p []byte) (int, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.log.Write(p)
}

// logged takes what was logged since the last time.
func (f *files) logged() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	defer f.log.Reset()
	return f.log.String()
}

func (f *files) put(name string, text []byte) {
	f.t.Helper()
	if err := os.WriteFile(filepath.Join(f.dir, name), text, 0o600); err != nil {
		f.t.Fatal(err)
	}
}

func (f *files) pair(p certificatetest.Pair) {
	f.t.Helper()
	p.Put(f.t, f.dir)
}

func (f *files) options() certificate.Options {
	return certificate.Options{CertFile: filepath.Join(f.dir, "tls.crt"), KeyFile: filepath.Join(f.dir, "tls.key"), Logger: slog.New(slog.NewTextHandler(f, nil))}
}

func newFiles(t *testing.T) *files { return &files{t: t, dir: t.TempDir()} }

// name is what the certificate that is shown is for.
func name(t *testing.T, c *certificate.Certificate) string {
	t.Helper()
	shown, err := c.Config().GetCertificate(&tls.ClientHelloInfo{})
	if err != nil {
		t.Fatal(err)
	}
	return shown.Leaf.DNSNames[0]
}

const day = 24 * time.Hour

func TestOpenSaysWhatIsWrong(t *testing.T) {
	now := time.Now()
	good, other := certificatetest.Make(t, "good", now, now.Add(90*day)), certificatetest.Make(t, "other", now, now.Add(90*day))
	for name, tc := range map[string]struct {
		cert, key []byte // nil: no file
		want      string
	}{
		"no certificate":      {nil, good.Key, "the certificate's file: open "},
		"no key":              {good.Cert, nil, "the private key's file: open "},
		"another one's key":   {good.Cert, other.Key, "are not a certificate and its private key in PEM"},
		"the wrong way round": {good.Key, good.Cert, "are not a certificate and its private key in PEM"},
		"half a certificate":  {good.Cert[:len(good.Cert)/2], good.Key, "are not a certificate and its private key in PEM"},
		"empty":               {[]byte{}, []byte{}, "are not a certificate and its private key in PEM"},
		"far too large":       {bytes.Repeat([]byte("x"), 2<<20), good.Key, "is larger than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFiles(t)
			if tc.cert != nil {
				f.put("tls.crt", tc.cert)
			}
			if tc.key != nil {
				f.put("tls.key", tc.key)
			}
			_, err := certificate.Open(f.options())
			if err == nil || !strings.Contains(err.Error(), tc.want) || !strings.Contains(err.Error(), f.dir) {
				t.Fatalf("%v, want %q and the file", err, tc.want)
			}
			if strings.Contains(err.Error(), "PRIVATE") {
				t.Errorf("the key is told: %v", err)
			}
		})
	}
}

// watched runs do with a certificate "old" that is looked at, in fake time.
func watched(t *testing.T, do func(t *testing.T, f *files, c *certificate.Certificate, now chan<- os.Signal)) {
	t.Helper()
	f := newFiles(t)
	synctest.Test(t, func(t *testing.T) {
		f.t = t
		f.pair(certificatetest.Make(t, "old", time.Now().Add(-day), time.Now().Add(90*day)))
		c, err := certificate.Open(f.options())
		if err != nil {
			t.Fatal(err)
		}
		now := make(chan os.Signal)
		c.Start(now)
		defer c.Stop()
		f.logged()
		do(t, f, c, now)
	})
}

// look lets the files be looked at.
func look() {
	time.Sleep(31 * time.Second) // of the fake clock
	synctest.Wait()
}

func TestNewFilesAreTakenOver(t *testing.T) {
	watched(t, func(t *testing.T, f *files, c *certificate.Certificate, _ chan<- os.Signal) {
		look()
		if log := f.logged(); log != "" {
			t.Errorf("nothing changed, and it says %s", log)
		}
		end := time.Now().Add(60 * day).Truncate(time.Second)
		f.pair(certificatetest.Make(t, "new", time.Now().Add(-day), end))
		look()
		if name(t, c) != "new" || !c.Expires().Equal(end) {
			t.Errorf("shows %s until %s", name(t, c), c.Expires())
		}
		if log := f.logged(); strings.Count(log, "\n") != 1 || !strings.Contains(log, `msg="TLS certificate"`) {
			t.Errorf("logged %s", log)
		}
	})
}

func TestSignalLooksAtOnce(t *testing.T) {
	watched(t, func(t *testing.T, f *files, c *certificate.Certificate, now chan<- os.Signal) {
		f.pair(certificatetest.Make(t, "new", time.Now().Add(-day), time.Now().Add(60*day)))
		now <- os.Interrupt
		synctest.Wait()
		if name(t, c) != "new" {
			t.Errorf("shows %s", name(t, c))
		}
		f.logged()
		f.put("tls.key", []byte("nonsense"))
		for range 2 { // who asks is answered, each time
			now <- os.Interrupt
			synctest.Wait()
			if log := f.logged(); !strings.Contains(log, "the old one stays") || name(t, c) != "new" {
				t.Errorf("shows %s, logged %s", name(t, c), log)
			}
		}
	})
}

// While a pair is being replaced the old one stays, and that is said once.
func TestHalfWrittenPair(t *testing.T) {
	for name0, tc := range map[string]struct {
		half func(f *files, next certificatetest.Pair)
	}{
		"the certificate comes first": {func(f *files, next certificatetest.Pair) { f.put("tls.crt", next.Cert) }},
		"the key comes first":         {func(f *files, next certificatetest.Pair) { f.put("tls.key", next.Key) }},
		"a part of the certificate":   {func(f *files, next certificatetest.Pair) { f.put("tls.crt", next.Cert[:100]) }},
		"no certificate for a time":   {func(f *files, _ certificatetest.Pair) { _ = os.Remove(filepath.Join(f.dir, "tls.crt")) }},
		"nothing in it":               {func(f *files, _ certificatetest.Pair) { f.put("tls.key", nil) }},
	} {
		t.Run(name0, func(t *testing.T) {
			watched(t, func(t *testing.T, f *files, c *certificate.Certificate, _ chan<- os.Signal) {
				next := certificatetest.Make(t, "new", time.Now().Add(-day), time.Now().Add(60*day))
				tc.half(f, next)
				for range 3 {
					look()
				}
				if name(t, c) != "old" {
					t.Fatalf("shows %s", name(t, c))
				}
				if log := f.logged(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "level=WARN") || !strings.Contains(log, f.dir) || strings.Contains(log, "PRIVATE") {
					t.Errorf("logged %s", log)
				}
				f.pair(next)
				look()
				if name(t, c) != "new" {
					t.Errorf("shows %s, logged %s", name(t, c), f.logged())
				}
			})
		})
	}
}

// Kubernetes turns one link, to a folder with both files.
func TestLinkIsTurned(t *testing.T) {
	f := newFiles(t)
	synctest.Test(t, func(t *testing.T) {
		f.t = t
		root := f.dir
		folder := func(name string) string {
			dir := filepath.Join(root, name)
			if err := os.Mkdir(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			g := &files{t: t, dir: dir}
			g.pair(certificatetest.Make(t, name, time.Now().Add(-day), time.Now().Add(60*day)))
			return dir
		}
		link := filepath.Join(root, "..data")
		turn := func(to string) {
			if err := os.Symlink(to, link+"_tmp"); err != nil {
				t.Fatal(err)
			}
			if err := os.Rename(link+"_tmp", link); err != nil {
				t.Fatal(err)
			}
		}
		turn(folder("one"))
		for _, file := range []string{"tls.crt", "tls.key"} {
			if err := os.Symlink(filepath.Join("..data", file), filepath.Join(root, file)); err != nil {
				t.Fatal(err)
			}
		}
		c, err := certificate.Open(f.options())
		if err != nil {
			t.Fatal(err)
		}
		c.Start(nil)
		defer c.Stop()
		turn(folder("two"))
		look()
		if name(t, c) != "two" {
			t.Errorf("shows %s, logged %s", name(t, c), f.logged())
		}
	})
}

// One that is out of its time takes no good one's place, but one that is as bad.
func TestOutOfTime(t *testing.T) {
	watched(t, func(t *testing.T, f *files, c *certificate.Certificate, _ chan<- os.Signal) {
		f.pair(certificatetest.Make(t, "ended", time.Now().Add(-60*day), time.Now().Add(-day)))
		look()
		if log := f.logged(); name(t, c) != "old" || !strings.Contains(log, "which is not now") {
			t.Errorf("shows %s, logged %s", name(t, c), log)
		}
		f.pair(certificatetest.Make(t, "to come", time.Now().Add(day), time.Now().Add(60*day)))
		look()
		if name(t, c) != "old" {
			t.Errorf("shows %s", name(t, c))
		}
	})
}

func TestWarnsOfTheEnd(t *testing.T) {
	for _, tc := range []struct {
		name      string
		has, left time.Duration
		want      string // at once, "" for nothing
	}{
		{"long to go", 90 * day, 15 * day, ""},
		{"two weeks", 90 * day, 14 * day, "expires soon"},
		{"over", 90 * day, -time.Hour, "has expired"},
		{"one that lasts short", 6 * day, 3 * day, ""},
		{"the last third of it", 6 * day, 2 * day, "expires soon"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := newFiles(t)
			synctest.Test(t, func(t *testing.T) {
				f.t = t
				end := time.Now().Add(tc.left)
				f.pair(certificatetest.Make(t, "x", end.Add(-tc.has), end))
				c, err := certificate.Open(f.options())
				if err != nil {
					t.Fatal(err)
				}
				c.Start(nil)
				defer c.Stop()
				look()
				log := f.logged()
				if tc.want == "" {
					if strings.Contains(log, "expire") && !strings.Contains(log, "expires=") || strings.Count(log, "\n") != 1 {
						t.Errorf("logged %s", log)
					}
					return
				}
				if strings.Count(log, tc.want) != 1 {
					t.Errorf("logged %s", log)
				}
				time.Sleep(day)
				synctest.Wait()
				if log := f.logged(); strings.Count(log, "\n") != 1 { // again, once a day
					t.Errorf("a day later: %s", log)
				}
			})
		})
	}
}

func TestKeyThatOthersMayRead(t *testing.T) {
	if runtime.GOOS == "windows" {
		return // a file's mode does not tell there
	}
	for mode, want := range map[os.FileMode]bool{0o600: false, 0o640: false, 0o644: true, 0o604: true} {
		f := newFiles(t)
		f.pair(certificatetest.Make(t, "x", time.Now(), time.Now().Add(90*day)))
		if err := os.Chmod(filepath.Join(f.dir, "tls.key"), mode); err != nil {
			t.Fatal(err)
		}
		if _, err := certificate.Open(f.options()); err != nil {
			t.Fatal(err)
		}
		if log := f.logged(); strings.Contains(log, "may read the private key") != want {
			t.Errorf("%o: logged %s", mode, log)
		}
	}
}
