package main

import "log/slog"

const (
	// ownFiles is how many open files are kept for all but the API's connections and
	// attempts in flight: the store, and connections that are kept for the next attempt.
	ownFiles = 512
	// leastConnections are left to the API however few files there may be.
	leastConnections = 64
)

// connectionLimit is how many connections the API may have, of those that are asked
// for (0: as many as come), when that leaves files to deliver with: without one, a
// server that many connect to could send nothing, nor open its store.
func connectionLimit(asked, slots int, logger *slog.Logger) int {
	return fitConnections(asked, slots, openFiles(), logger)
}

func fitConnections(asked, slots int, files uint64, logger *slog.Logger) int {
	if files == 0 || files > 1<<30 {
		return asked
	}
	room := max(int(files)-slots-ownFiles, leastConnections)
	if asked == 0 || asked > room {
		logger.Warn("fewer connections are taken than --max-connections says, since this process may not have so many files open; raise that (ulimit -n, LimitNOFILE)",
			"max_connections", asked, "taken", room, "open_files", files)
		return room
	}
	return asked
}
