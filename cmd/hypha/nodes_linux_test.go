package main

import (
	"testing"

	"github.com/plinqx/hypha/internal/pgtest"
)

// The disk of the database is full, while its log has room: nothing can be added, and
// leases are renewed all the same.
func TestFullDatabaseDiskLosesNothing(t *testing.T) {
	server, disk := pgtest.OwnWithDisk(t, 128, nil)
	database := server.Database(t)
	if err := disk.Move(t.Context(), database); err != nil {
		t.Fatal(err)
	}
	f := newFleet(t, database, 2)
	f.publish(6)
	f.suffers(trouble{"full", disk.Fill, disk.Free})
	f.check()
	f.nobodyIsTakenOver()
}
