package e2e

import (
	"testing"

	"github.com/bodkin-net/bodkin/e2e/lab"
)

// TestMatrix runs a representative part of the matrix: every filtering
// behaviour against a symmetric NAT and against itself. `make matrix` runs all.
func TestMatrix(t *testing.T) {
	ctx, c := start(t, ClusterOptions{})
	kinds := []lab.NATKind{lab.AddressRestricted, lab.PortRestricted, lab.Symmetric}
	grid, err := NewGrid(ctx, c, kinds)
	must(t, err)
	for _, cell := range [][2]lab.NATKind{
		{lab.AddressRestricted, lab.AddressRestricted},
		{lab.PortRestricted, lab.PortRestricted},
		{lab.PortRestricted, lab.AddressRestricted},
		{lab.AddressRestricted, lab.Symmetric},
		{lab.Symmetric, lab.AddressRestricted},
		{lab.Symmetric, lab.PortRestricted},
		{lab.Symmetric, lab.Symmetric},
	} {
		t.Run(cell[0].String()+"×"+cell[1].String(), func(t *testing.T) {
			got, err := grid.RunCell(ctx, cell[0], cell[1])
			must(t, err)
			if problem := got.Problem(); problem != "" {
				t.Error(problem)
			}
			t.Logf("%+v", got)
		})
	}
}
