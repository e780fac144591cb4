//go:build linux || darwin

package main

import "syscall"

// openFiles is how many files, and so connections, this process may have open: 0 if
// that is not known. Go has raised it as far as it may at the start.
func openFiles() uint64 {
	var limit syscall.Rlimit
	if syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return 0
	}
	return limit.Cur
}
