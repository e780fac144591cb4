//go:build unix

package adminsocket

import (
	"errors"
	"os"
	"syscall"
)

// ownerOf is the account that a folder belongs to.
func ownerOf(dir string) (int, error) {
	info, err := os.Stat(dir)
	if err != nil {
		return 0, err
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return 0, errors.ErrUnsupported
	}
	return int(stat.Uid), nil
}
