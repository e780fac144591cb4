package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"

	"github.com/plinqx/hypha/internal/adminsocket"
	"github.com/plinqx/hypha/internal/auth"
	"github.com/plinqx/hypha/internal/framing"
)

// adminSocketSetting names the socket, for the server and for hypha admin alike.
type adminSocketSetting struct {
	AdminSocket string `help:"Unix socket through which the server's own account, and root, administer it: see hypha admin. Default: admin.sock in the data folder, and none with --database-url. off: none." placeholder:"PATH"`
}

const (
	noAdminSocket   = "off"
	adminSocketName = "admin.sock"
)

// in is the socket's path: that which is given, or the one in a data folder (""
// where there is none). It is "" for no socket.
func (a *adminSocketSetting) in(data string) string {
	switch {
	case a.AdminSocket == noAdminSocket:
		return ""
	case a.AdminSocket != "":
		return a.AdminSocket
	case data != "":
		return filepath.Join(data, adminSocketName)
	default:
		return ""
	}
}

// adminSocket is the path of the server's socket, "" for none.
func (s *settings) adminSocket() string {
	if s.DatabaseURL != "" {
		return s.in("")
	}
	return s.in(s.Data)
}

// adminServer answers what comes by the admin socket. A nil one has none.
type adminServer struct {
	listener *adminsocket.Listener
	http     *http.Server
}

// openAdminSocket makes the socket that the settings name: nil for none. One that
// was not asked for, since it is there by default, does not keep a server from
// starting.
func openAdminSocket(ctx context.Context, s *settings, logger *slog.Logger) (*adminServer, error) {
	path := s.adminSocket()
	if path == "" {
		return nil, nil
	}
	l, err := adminsocket.Listen(ctx, path, func(p adminsocket.Peer, err error) {
		logger.Warn("the admin socket turned somebody away", "who", p.String(), "err", err)
	})
	switch {
	case err == nil:
	case s.AdminSocket != "":
		return nil, fmt.Errorf("--admin-socket: %w", err)
	default:
		logger.Warn("there is no admin socket, so hypha admin can't be used; --admin-socket names another path, or off", "err", err)
		return nil, nil
	}
	logger.Info("admin socket", "path", path)
	return &adminServer{listener: l}, nil
}

// handle says who answers: the API, with an operator's authority for whoever the
// system says is there. It is the connection that gives it, and nothing that is sent.
func (a *adminServer) handle(h http.Handler, logger *slog.Logger) {
	if a == nil {
		return
	}
	a.http = httpServer(h, logger)
	a.http.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if peer, ok := c.RemoteAddr().(adminsocket.Peer); ok {
			return auth.ByAdminSocket(ctx, peer.Account)
		}
		return ctx
	}
}

func (a *adminServer) serve() error { return a.http.Serve(framing.Listen(a.listener)) }

// stop waits for what is being answered, until ctx ends, and removes the socket.
func (a *adminServer) stop(ctx context.Context) {
	if a == nil {
		return
	}
	if err := a.http.Shutdown(ctx); err != nil {
		_ = a.http.Close() // who has not finished by now is cut off
	}
	a.close()
}

// close removes the socket.
func (a *adminServer) close() {
	if a != nil {
		_ = a.listener.Close() // the next start replaces it
	}
}
