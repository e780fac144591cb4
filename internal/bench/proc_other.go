//go:build !linux

package bench

import "time"

// readUsage knows nothing about processes here; the report says "n/a".
func readUsage(int) (usage, error) { return usage{}, nil }

func readFamily(int) (time.Duration, error) { return 0, nil }

func postmasterOf(int, string) int { return 0 }

func readIdle() (time.Duration, int, error) { return 0, 0, nil }

func loadAverage() float64 { return 0 }

func processorName() string { return "" }
