//go:build unix

package pgtest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"syscall"
)

// binVariable names the folder of the server programs, where that is not found.
const binVariable = "HYPHA_PG_BIN"

// errNoPrograms says what to do.
var errNoPrograms = errors.New("these tests need PostgreSQL's server programs (15 or newer), and initdb is neither in /usr/lib/postgresql/*/bin nor in PATH: " +
	"run scripts/test-deps, or install them (Debian: apt-get install postgresql; Fedora: dnf install postgresql-server; macOS: brew install postgresql@18), " +
	"or name their folder with " + binVariable)

// findPrograms finds the folder that initdb and postgres are in.
func findPrograms() (string, error) {
	if given := os.Getenv(binVariable); given != "" {
		if _, err := os.Stat(filepath.Join(given, "initdb")); err != nil {
			return "", fmt.Errorf("%s names a folder without PostgreSQL's initdb: %w", binVariable, err)
		}
		return given, nil
	}
	found, err := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if err != nil {
		return "", err
	}
	newest, folder := 0, ""
	for _, path := range found {
		bin := filepath.Dir(path)
		if version, err := strconv.Atoi(filepath.Base(filepath.Dir(bin))); err == nil && version > newest {
			newest, folder = version, bin
		}
	}
	if folder != "" {
		return folder, nil
	}
	path, err := exec.LookPath("initdb")
	if err != nil {
		return "", errNoPrograms
	}
	// It may be a link into the folder where the others are.
	if path, err = filepath.EvalSymlinks(path); err != nil {
		return "", err
	}
	return filepath.Dir(path), nil
}

// findPgBouncer finds pgbouncer, which Debian keeps out of users' PATH.
func findPgBouncer() (string, error) {
	const elsewhere = "/usr/sbin/pgbouncer"
	path, err := exec.LookPath("pgbouncer")
	if err == nil {
		return path, nil
	}
	if _, err := os.Stat(elsewhere); err != nil {
		return "", errors.New("these tests need pgbouncer, and it is not in PATH: run scripts/test-deps, or install it (Debian: apt-get install pgbouncer; Fedora: dnf install pgbouncer; macOS: brew install pgbouncer)")
	}
	return elsewhere, nil
}

// unprivileged is whom the server runs as: nil for who we are. PostgreSQL refuses to
// run as root.
func unprivileged() (*syscall.Credential, error) {
	if os.Geteuid() != 0 {
		return nil, nil
	}
	for _, name := range [...]string{"postgres", "nobody"} {
		u, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, uidErr := strconv.ParseUint(u.Uid, 10, 32)
		gid, gidErr := strconv.ParseUint(u.Gid, 10, 32)
		if uidErr == nil && gidErr == nil {
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}, nil
		}
	}
	return nil, errors.New("PostgreSQL refuses to run as root, and this system has neither a user postgres nor a user nobody: run the tests as another user")
}
