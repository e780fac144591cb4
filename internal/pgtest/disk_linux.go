package pgtest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"
)

// Disk is a small file system that a server alone sees, and that is gone with it.
type Disk struct{ server *Server }

// OwnWithDisk is Own, of a server that has a second disk of so many MiB. It must not
// be started again.
func OwnWithDisk(t testing.TB, mib int, prepare func(ctx context.Context, url string) error) (*Server, Disk) {
	t.Helper()
	s := Own(t, prepare)
	s.within = func(cmd *exec.Cmd) { mountFirst(cmd, mib) }
	return s, Disk{s}
}

// diskFolder is where the disk is, in the server's folder.
const diskFolder = "disk"

// mountFirst makes a command of the server's one that mounts the disk before, in a
// world of its own. Who is not root is it in that world, and stops being it for the
// server, which does not run as root.
func mountFirst(cmd *exec.Cmd, mib int) {
	owner := "uid=0,gid=0"
	become := []string{"unshare", "--user", "--map-user=1000", "--map-group=1000"}
	attributes := &syscall.SysProcAttr{Setpgid: true, Unshareflags: syscall.CLONE_NEWNS}
	if account := cmd.SysProcAttr.Credential; account != nil {
		uid, gid := strconv.Itoa(int(account.Uid)), strconv.Itoa(int(account.Gid))
		owner = "uid=" + uid + ",gid=" + gid
		become = []string{"setpriv", "--reuid", uid, "--regid", gid, "--clear-groups"}
	} else {
		attributes.Cloneflags = syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}}
	}
	const script = `mkdir -p "$2" && mount -t tmpfs -o "$1" tmpfs "$2" && shift 2 && exec "$@"`
	args := append([]string{"sh", "-c", script, "sh", fmt.Sprintf("size=%dm,mode=700,%s", mib, owner), filepath.Join(cmd.Dir, diskFolder)}, become...)
	cmd.Args = append(args, append([]string{cmd.Path}, cmd.Args[1:]...)...)
	cmd.Path, cmd.SysProcAttr = "/bin/sh", attributes
}

// Move puts a database on the disk. Nobody may use it meanwhile.
func (d Disk) Move(ctx context.Context, database string) error {
	name, err := nameOf(database)
	if err != nil {
		return err
	}
	err = d.server.execute(ctx, "CREATE TABLESPACE disk LOCATION '"+filepath.Join(d.server.process.folder, diskFolder)+"'")
	if err != nil {
		return err
	}
	return d.server.execute(ctx, "ALTER DATABASE "+name+" SET TABLESPACE disk")
}

// ballast is what fills the disk, as we see it.
func (d Disk) ballast() string {
	p := d.server.process
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Sprintf("/proc/%d/root%s", p.cmd.Process.Pid, filepath.Join(p.folder, diskFolder, "ballast"))
}

// Fill leaves nothing free.
func (d Disk) Fill() error {
	f, err := os.Create(d.ballast())
	if err != nil {
		return err
	}
	block := make([]byte, 64<<10)
	for err == nil {
		_, err = f.Write(block)
	}
	if errors.Is(err, syscall.ENOSPC) {
		err = nil
	}
	return errors.Join(err, f.Close())
}

// Free takes away what Fill put there.
func (d Disk) Free() error { return os.Remove(d.ballast()) }
