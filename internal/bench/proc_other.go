//go:build !linux

package bench

// readUsage knows nothing about processes here; the report says "n/a".
func readUsage(int) (usage, error) { return usage{}, nil }

func loadAverage() float64 { return 0 }

func processorName() string { return "" }
