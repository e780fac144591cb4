package bench

import (
	"os/exec"
	"runtime"
	"syscall"
)

// dieWithParent makes the kernel kill the process of cmd when this one ends,
// however that happens: a server left behind would go on taking the machine
// that the next run is to measure. The kernel means the thread that starts the
// process (PR_SET_PDEATHSIG(2const)), so the calling goroutine is tied to its
// thread and must start the process, and wait for it, itself.
func dieWithParent(cmd *exec.Cmd) {
	runtime.LockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
}
