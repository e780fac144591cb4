//go:build unix && !linux

package pgtest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os/exec"
)

// childrenOf are the processes that a process has started and that run.
func childrenOf(parent int) ([]int, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out, err := exec.CommandContext(ctx, "ps", "-A", "-o", "pid=,ppid=").Output()
	if err != nil {
		return nil, err
	}
	var children []int
	lines := bufio.NewScanner(bytes.NewReader(out))
	for lines.Scan() {
		var pid, of int
		if _, err := fmt.Sscan(lines.Text(), &pid, &of); err == nil && of == parent {
			children = append(children, pid)
		}
	}
	return children, lines.Err()
}
