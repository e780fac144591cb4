package bench

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"
	"time"
)

// childEnv makes this test binary the child process that the harness starts.
const childEnv = "BENCH_TEST_CHILD"

func TestMain(m *testing.M) {
	// A fuzzing worker inherits the variable too, but is started with flags.
	if os.Getenv(childEnv) == "" || strings.HasPrefix(os.Args[1], "-") {
		for name, value := range map[string]string{
			childEnv:             "1",
			"HYPHA_DATABASE_URL": "postgres://production", // must not reach a server
		} {
			if err := os.Setenv(name, value); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
		os.Exit(m.Run())
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	var err error
	switch args := os.Args[2:]; os.Args[1] {
	case "bench-receiver":
		err = RunReceiver(ctx, args, os.Stdin, os.Stdout)
	case "bench-relay":
		err = RunRelay(ctx, args, os.Stdin, os.Stdout)
	case "serve":
		err = fakeServer(ctx, args)
	case "bench-seed":
		err = fakeSeed(args)
	case "harness":
		err = Run(ctx, Options{Self: os.Args[0], TempDir: args[0], Publishers: 1, Duration: time.Hour}, os.Stdout)
	default:
		err = fmt.Errorf("unknown command %q", os.Args[1])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
