package bench

import (
	"os"
	"syscall"
)

// syncedFile syncs a file's data as the server's own store does.
type syncedFile struct{ *os.File }

// sync is fdatasync(2): it leaves out metadata that reading back does not need.
func (f syncedFile) sync() error {
	for {
		if err := syscall.Fdatasync(int(f.Fd())); err != syscall.EINTR {
			return os.NewSyscallError("fdatasync", err)
		}
	}
}
