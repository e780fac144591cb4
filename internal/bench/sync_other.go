//go:build !linux

package bench

import "os"

// syncedFile syncs a file as far as the system offers it.
type syncedFile struct{ *os.File }

func (f syncedFile) sync() error { return f.Sync() }
