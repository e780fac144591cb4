//go:build !unix

package send

import "net"

// probe can't be had on this system.
type probe struct{}

func newProbe(net.Conn) *probe { return nil }

func (*probe) quiet() bool { return false }
