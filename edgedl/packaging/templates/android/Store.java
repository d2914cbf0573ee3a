package __PACKAGE__;

import android.content.res.AssetManager;
import com.google.ai.edge.litert.Accelerator;
import java.io.File;
import java.io.IOException;
import java.math.BigInteger;
import java.nio.file.Files;
import java.security.MessageDigest;
import java.util.Base64;
import java.util.Iterator;
import java.util.zip.ZipEntry;
import java.util.zip.ZipFile;
import org.json.JSONArray;
import org.json.JSONObject;

/** The folder of installed packages: one a manifest's hash, and the file "current" that names the one in use. */
final class Store {
  private static final String SIGNATURE = "manifest.intoto.jsonl";
  private static final String SIGNED = "DSSEv1 28 application/vnd.in-toto+json "; // before the length of the payload
  private static final String PLAIN = "\\w[\\w.+-]*(/\\w[\\w.+-]*)*"; // a path that leads out of no folder
  String fallback;
  private final File folder;
  private final File pointer;
  private final File part;
  private final AssetManager assets;
  private final String bundled;
  private final String key;

  /** bundled is the folder of the app's own package in its assets, with a slash at its end. */
  Store(File folder, AssetManager assets, String bundled, String key) {
    this.folder = new File(folder, bundled);
    this.assets = assets;
    this.bundled = bundled;
    this.key = key;
    pointer = new File(this.folder, "current");
    part = new File(this.folder, "part");
  }

  /** The installed package where it holds, else the bundled one, and then fallback says why. */
  Runner open(Accelerator accelerator) throws Exception {
    fallback = null;
    try {
      if (pointer.isFile()) {
        String hash = Runner.text(Runner.read(null, pointer.getPath()));
        return new Runner(null, checked(new File(folder, hash), hash), accelerator);
      }
    } catch (Exception e) {
      fallback = String.valueOf(e.getMessage());
    }
    return new Runner(assets, bundled, accelerator);
  }

  /** Checks a package on this device, and then makes it the installed one. */
  SelfTest install(File file, Accelerator accelerator) throws RejectedPackageException {
    try {
      String hash = unpack(file);
      Runner runner = new Runner(null, checked(part, hash), accelerator);
      SelfTest tested = runner.selfTest();
      runner.close();
      check(tested.passed, "the self-test fails");
      swap(hash);
      return tested;
    } catch (Exception e) {
      throw new RejectedPackageException(file + ": " + e.getMessage());
    } finally {
      delete(part);
    }
  }

  /** Unpacks a package whose manifest is signed into part. The hash of its manifest. */
  private String unpack(File file) throws Exception {
    delete(part);
    try (ZipFile zip = new ZipFile(file)) {
      byte[] text = read(zip, Runner.MANIFEST);
      String hash = sha256(text);
      check(isSigned(Runner.json(read(zip, SIGNATURE)), hash), "not signed with the key of this app");
      write(Runner.MANIFEST, text);
      for (Iterator<String> names = Runner.json(text).getJSONObject("files").keys(); names.hasNext(); ) {
        String name = names.next();
        check(name.matches(PLAIN), name + " is no plain file");
        write(name, read(zip, name));
      }
      return hash;
    }
  }

  /** Makes part the installed package: the one rename of "current" is the swap. */
  private void swap(String hash) throws Exception {
    File home = new File(folder, hash);
    File next = new File(folder, "next");
    delete(home);
    Files.write(next.toPath(), hash.getBytes());
    check(part.renameTo(home) && next.renameTo(pointer), folder + " cannot be written");
    for (File each : folder.listFiles()) {
      if (!each.equals(home) && !each.equals(pointer)) delete(each);
    }
  }

  /** The path of a folder. Throws where the package in it was changed, or this app has no use for it. */
  private String checked(File home, String hash) throws Exception {
    String path = home + "/";
    byte[] text = Runner.read(null, path + Runner.MANIFEST);
    check(sha256(text).equals(hash), Runner.MANIFEST + " was changed");
    JSONObject manifest = Runner.json(text);
    JSONObject ours = Runner.json(Runner.read(assets, bundled + Runner.MANIFEST));
    check(manifest.getString("manifest_version").startsWith("1."), "its manifest is of another kind");
    check(manifest.getString("name").equals(ours.getString("name")), "it is another model");
    int[] own = version(ours);
    int[] other = version(manifest);
    check(own[0] == other[0], "version " + other[0] + ".x, this app takes " + own[0] + ".x");
    boolean isOlder = other[1] < own[1] || (other[1] == own[1] && other[2] < own[2]);
    check(!isOlder, "older than the one that this app came with");
    for (String side : new String[] {"inputs", "outputs", "preprocessing"}) {
      check(shape(ours.getJSONArray(side)).equals(shape(manifest.getJSONArray(side))), "other " + side);
    }
    JSONObject files = manifest.getJSONObject("files");
    for (Iterator<String> names = files.keys(); names.hasNext(); ) {
      String name = names.next();
      check(sha256(Runner.read(null, path + name)).equals(files.getString(name)), name + " was changed");
    }
    return path;
  }

  void clear() {
    delete(folder);
  }

  private static void check(boolean holds, String problem) throws IOException {
    if (!holds) throw new IOException(problem);
  }

  /** What the app's code depends on: names, types and shapes of tensors, the kinds of steps. */
  private static String shape(JSONArray parts) throws Exception {
    String found = "";
    for (int i = 0; i < parts.length(); i++) {
      JSONObject part = parts.getJSONObject(i);
      for (String key : new String[] {"op", "name", "dtype", "shape"}) found += part.opt(key) + " ";
    }
    return found;
  }

  private static int[] version(JSONObject manifest) throws Exception {
    String[] parts = manifest.getString("version").split("[.-]");
    int[] found = new int[3];
    for (int i = 0; i < 3; i++) found[i] = Integer.parseInt(parts[i]);
    return found;
  }

  /** Whether an in-toto statement in a DSSE envelope, signed for our key, is about the manifest of this hash. */
  private boolean isSigned(JSONObject envelope, String hash) throws Exception {
    String payload = Runner.text(decoded(envelope.getString("payload")));
    String message = SIGNED + Runner.bytes(payload).length + " " + payload;
    byte[] signature = decoded(envelope.getJSONArray("signatures").getJSONObject(0).getString("sig"));
    JSONObject subject = new JSONObject(payload).getJSONArray("subject").getJSONObject(0);
    return Ed25519.verify(decoded(key), signature, Runner.bytes(message))
        && subject.getString("name").equals(Runner.MANIFEST)
        && subject.getJSONObject("digest").getString("sha256").equals(hash);
  }

  private static byte[] decoded(String base64) {
    return Base64.getDecoder().decode(base64);
  }

  /** A file of a package: at the top of a .zip, where assets lie in an .aar. */
  private byte[] read(ZipFile zip, String name) throws Exception {
    ZipEntry entry = zip.getEntry(name);
    if (entry == null) entry = zip.getEntry("assets/" + bundled + name);
    check(entry != null, name + " is missing");
    return Runner.all(zip.getInputStream(entry));
  }

  private void write(String name, byte[] bytes) throws Exception {
    File file = new File(part, name);
    file.getParentFile().mkdirs();
    Files.write(file.toPath(), bytes);
  }

  private static String sha256(byte[] bytes) throws Exception {
    return String.format("%064x", new BigInteger(1, MessageDigest.getInstance("SHA-256").digest(bytes)));
  }

  private static void delete(File file) {
    File[] inside = file.listFiles();
    if (inside != null) for (File each : inside) delete(each);
    file.delete();
  }
}
