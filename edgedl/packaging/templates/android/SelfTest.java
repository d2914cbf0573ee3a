package __PACKAGE__;

/** Whether the model gives here what it gave where it was packaged: a place an output, in the unit of its tolerance. */
public final class SelfTest {
  public final boolean passed;
  public final double[] measured;
  public final double[] limits;

  SelfTest(double[] measured, double[] limits) {
    this.measured = measured;
    this.limits = limits;
    boolean holds = true;
    for (int i = 0; i < limits.length; i++) holds &= measured[i] <= limits[i];
    passed = holds;
  }
}
