package e2e

import "testing"

// matrixCells are a representative part of the matrix: each strategy, in each
// order where the sides differ, and each obstacle.
var matrixCells = [][2]string{
	{"none", "port-restricted"},                      // ice
	{"address-restricted", "symmetric"},              // ice, towards an unknown port
	{"port-restricted", "port-restricted"},           // ice or openers
	{"port-restricted-poisoned", "port-restricted"},  // openers
	{"carrier", "port-restricted-poisoned"},          // openers, with a higher TTL
	{"symmetric-sequential", "port-restricted"},      // predict
	{"symmetric-sequential", "symmetric-sequential"}, // predict, on both sides
	{"symmetric", "port-restricted"},                 // probe
	{"port-restricted-poisoned", "symmetric"},        // probe, the other way round
	{"symmetric+portmap", "symmetric"},               // ice, to a mapped port
	{"ipv6-firewall", "ipv6-firewall"},               // ice
	{"symmetric", "symmetric"},                       // relay
	{"udp-blocked", "port-restricted"},               // relay
	{"address-restricted", "ipv6-firewall"},          // relay
}

// TestMatrix runs matrixCells. `make matrix` runs all pairs of sites.
func TestMatrix(t *testing.T) {
	var cells [][2]Site
	seen := map[Site]bool{}
	var sites []Site
	for _, names := range matrixCells {
		var cell [2]Site
		for i, name := range names {
			site, err := FindSite(name)
			must(t, err)
			cell[i] = site
			if !seen[site] {
				seen[site] = true
				sites = append(sites, site)
			}
		}
		cells = append(cells, cell)
	}
	ctx, c := start(t, ClusterOptions{IPv6: NeedIPv6(sites)})
	grid, err := NewGrid(ctx, c, sites)
	must(t, err)
	for _, cell := range cells {
		t.Run(cell[0].Name+"×"+cell[1].Name, func(t *testing.T) {
			got, err := grid.RunCell(ctx, cell[0], cell[1])
			must(t, err)
			if problem := got.Problem(); problem != "" {
				t.Error(problem)
			}
			t.Logf("%+v", got)
		})
	}
}
