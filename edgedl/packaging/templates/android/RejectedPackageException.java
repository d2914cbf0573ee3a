package __PACKAGE__;

/** A package that ModelStore does not install, and why. What was installed before still is. */
public final class RejectedPackageException extends Exception {
  RejectedPackageException(String message) {
    super(message);
  }
}
